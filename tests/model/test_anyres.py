"""AnyRes: images of several tiles through processor, model and generation; without spatial tokens it is LLaVA-NeXT."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaNextConfig, LlavaNextForConditionalGeneration, pipeline

from llava_sp import LlavaSPForCausalLM, LlavaSPProcessor
from llava_sp.data.conversation import get_template
from llava_sp.model import loading
from llava_sp.model.parts import make_processor
from llava_sp.model.trainable import add_lora, set_trainable, trainable_parameter_groups
from tests.tiny import IMAGE_SIZE as SIDE

MERGE_TYPES = ["flat", "spatial", "spatial_unpad"]
Loaded = tuple[LlavaSPForCausalLM, LlavaSPProcessor]


def build(tiny_parts: Any, merge_type: str = "spatial_unpad", **overrides: Any) -> Loaded:
    fields = {"sfe_channels": 8, "patch_merge_type": merge_type, **overrides}
    return loading.build(
        *map(str, tiny_parts),
        overrides=fields,
        image_aspect_ratio="anyres",
        chat_template=get_template("v1").chat_template(),
    )


@pytest.fixture(scope="module")
def loaded(tiny_parts: Any) -> Loaded:
    return build(tiny_parts)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [picture(90, 70), picture(30, 30), picture(40, 130)]  # 2 x 2, 2 x 1 and 3 x 1 tiles
COUNTS = [5, 3, 4]


def ask(processor: LlavaSPProcessor, pictures: list[Image.Image], **options: Any) -> Any:
    prompts = [
        "USER: <image>\nWhat is this? ASSISTANT:",
        "USER: <image> Why? ASSISTANT:",
        "USER: <image>\nSo ASSISTANT:",
    ]
    text = [*prompts[: len(pictures)], "USER: Text alone. ASSISTANT:"] if len(pictures) > 1 else prompts[:1]
    return processor(text=text, images=pictures, return_tensors="pt", padding=True, **options)


def test_the_processor_pads_views_and_counts_tokens(loaded: Loaded) -> None:
    model, processor = loaded
    inputs = ask(processor, PICTURES)
    assert inputs["pixel_values"].shape == (3, 5, 3, SIDE, SIDE)
    assert [image.flatten(1).any(dim=1).sum() for image in inputs["pixel_values"]] == COUNTS
    assert inputs["image_sizes"].tolist() == [[70, 90], [30, 30], [130, 40]]
    counts = [processor.num_image_tokens_of(height, width) for height, width in inputs["image_sizes"].tolist()]
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [*counts, 0]
    assert processor._get_num_multimodal_tokens(image_sizes=[(70, 90), (30, 30)])["num_image_tokens"] == counts[:2]
    assert processor.tile_layout == model.config.tile_layout


@pytest.mark.parametrize("merge_type", MERGE_TYPES)
def test_the_tokens_of_each_view_stand_where_the_layout_has_them(merge_type: str, tiny_parts: Any) -> None:
    model, processor = build(tiny_parts, merge_type)
    model.train()  # the tower has no dropout, and text alone must be told from images by their pixels
    one_tile = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})[0]
    one_tile.load_state_dict(model.state_dict(), strict=False)
    inputs = ask(processor, PICTURES)
    inputs["pixel_values"][1, 3:] = math.nan  # what fills up is never looked at
    expected = []
    for pixels, size, count in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), COUNTS, strict=True):
        views = torch.stack(one_tile.get_image_features(pixels[:count]).pooler_output)
        if merge_type == "spatial_unpad":
            row_end = model.model.multi_modal_projector.image_newline
            views = torch.cat([views, row_end.expand(count, 1, -1)], dim=1)
        expected.append(model.config.tile_layout.join(views, *size))
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    embeddings[inputs["input_ids"] == processor.image_token_id] = torch.cat(expected)
    mask = inputs["attention_mask"]
    torch.testing.assert_close(model(**inputs).logits, model(inputs_embeds=embeddings, attention_mask=mask).logits)


def test_without_spatial_tokens_it_is_llava_next(tiny_parts: Any) -> None:
    model, processor = build(tiny_parts, sfe_maps="none", sfe_channels=512)
    config = LlavaNextConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    )
    theirs = LlavaNextForConditionalGeneration(config).eval()
    weights = model.state_dict()
    weights["model.image_newline"] = weights.pop("model.multi_modal_projector.image_newline")
    theirs.load_state_dict(weights)
    inputs = ask(processor, PICTURES)
    real = inputs["attention_mask"].bool()
    rows = model.config.llm_vocab_size  # of the rest, ours are silent
    torch.testing.assert_close(model(**inputs).logits[real][:, :rows], theirs(**inputs).logits[real][:, :rows])


@pytest.mark.parametrize(
    ("merge_type", "arguments"),
    [("flat", {}), ("spatial", {}), ("spatial_unpad", {}), ("spatial_unpad", {"num_beams": 3})],
)
def test_a_batch_of_mixed_sizes_generates_what_singles_do(merge_type: str, arguments: Any, tiny_parts: Any) -> None:
    model, processor = build(tiny_parts, merge_type)
    inputs = ask(processor, PICTURES)
    batched = model.generate(**inputs, max_new_tokens=8, do_sample=False, **arguments)[
        :, inputs["input_ids"].shape[1] :
    ]
    for row, image in enumerate(PICTURES):
        mask = inputs["attention_mask"][row].bool()
        pixels = processor.image_processor(image, return_tensors="pt")
        single = model.generate(
            inputs["input_ids"][row, mask][None], **pixels, max_new_tokens=8, do_sample=False, **arguments
        )
        answer = single[0, mask.sum() :].tolist()
        assert batched[row].tolist()[: len(answer)] == answer


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_alone_and_images_reach_every_parameter_of_the_projector(
    lora: bool, checkpointing: bool, tiny_parts: Any
) -> None:
    plain, processor = build(tiny_parts)
    inputs = ask(processor, PICTURES[:2])
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -100)
    model: Any = add_lora(plain, rank=2, alpha=4, dropout=0.0) if lora else plain
    if not lora:
        set_trainable(model, ["projector"])
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    projector = dict(trainable_parameter_groups(model)["projector"])
    assert sum("image_newline" in name for name in projector) == 1
    ids = torch.tensor([[1, 300, 400]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projector.values())
    model(**inputs).loss.backward()
    assert all(parameter.grad.any() for parameter in projector.values())


def test_the_row_end_is_initialised_as_llavas_and_saved_with_every_kind(tiny_parts: Any, tmp_path: Any) -> None:
    model, processor = build(tiny_parts)
    row_end = model.model.multi_modal_projector.image_newline
    assert row_end.shape == (64,)
    assert row_end.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.3)
    bare = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("image_newline")}
    model.save_pretrained(tmp_path / "bare", state_dict=bare)
    fresh = LlavaSPForCausalLM.from_pretrained(tmp_path / "bare").model.multi_modal_projector.image_newline
    assert fresh.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.3)

    set_trainable(model, ["projector"])
    loading.save(model, processor, tmp_path / "projector", stage="pretrain")
    set_trainable(model, ["projector", "llm"])
    loading.save(model, processor, tmp_path / "full", stage="finetune")
    saved = row_end.detach().clone()
    loading.save(add_lora(model, rank=2, alpha=4, dropout=0.0), processor, tmp_path / "adapter", stage="finetune_lora")
    for kind in ("projector", "full", "adapter"):
        again, its_processor = loading.load(tmp_path / kind)
        assert torch.equal(again.model.multi_modal_projector.image_newline, saved)
        assert its_processor.tile_layout == again.config.tile_layout == model.config.tile_layout
    for merge_type in ("flat", "spatial"):
        assert build(tiny_parts, merge_type)[0].model.multi_modal_projector.image_newline is None


def test_a_model_of_one_tile_becomes_one_of_several(tiny_parts: Any, tmp_path: Any) -> None:
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})
    set_trainable(model, ["projector", "llm"])
    loading.save(model, processor, tmp_path / "full", stage="finetune")
    model, processor = loading.load(tmp_path / "full")
    state = torch.get_rng_state()
    assert model.model.lay_out_tiles([[SIDE, SIDE]], "spatial_unpad")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.model.lay_out_tiles([[SIDE, 2 * SIDE]], "spatial_unpad")  # the row end is there already
    row_end = model.model.multi_modal_projector.image_newline
    # What stands on a whole model of one tile brings its own tiles along.
    processor = make_processor(model.config, processor.tokenizer, str(tiny_parts[1]))
    loading.save(add_lora(model, rank=2, alpha=4, dropout=0.0), processor, tmp_path / "lora", stage="finetune_lora")
    again, _ = loading.load(tmp_path / "lora")
    assert torch.equal(again.model.multi_modal_projector.image_newline, row_end)
    assert again.config.image_grid_pinpoints == [[SIDE, 2 * SIDE]]


def test_pixels_of_one_tile_are_refused(loaded: Loaded) -> None:
    model, _ = loaded
    with pytest.raises(ValueError, match=r"it needs pixel_values .images, views, 3, S, S. and image_sizes"):
        model.get_image_features(torch.zeros(2, 3, SIDE, SIDE))


def test_chat_template_and_pipeline(loaded: Loaded, tmp_path: Any) -> None:
    model, processor = loaded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tile_layout == model.config.tile_layout

    def messages(image: Image.Image) -> list[dict[str, Any]]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
        return [{"role": "user", "content": content}]

    inputs = processor.apply_chat_template(
        messages(PICTURES[0]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == processor.num_image_tokens_of(70, 90)
    model.generate(**inputs, max_new_tokens=2)
    answer = pipeline("image-text-to-text", model=str(tmp_path), processor=processor)
    arguments = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    single = answer(text=messages(PICTURES[0]), **arguments)[0]["generated_text"]
    # transformers joins images prepared one by one, and so batches only those of one number of tiles.
    batched = answer(text=[messages(PICTURES[0])] * 2, batch_size=2, **arguments)
    assert [result[0]["generated_text"] for result in batched] == [single, single]
