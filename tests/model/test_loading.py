"""Building from parts, and every kind of checkpoint loaded by its path alone."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_sp import LlavaSPForCausalLM, LlavaSPProcessor
from llava_sp.model import loading, trainable
from llava_sp.model.partial import PROJECTOR_NAME
from llava_sp.model.variants import VARIANTS
from llava_sp.utils.errors import UserError

# Ablations that belong to the 24 x 24 grid, made to fit the 12 x 12 grid of the tiny tower.
OVERRIDES = {
    "eight_tokens": {"num_spatial_tokens": 4},
    "twelve_tokens": {"num_spatial_tokens": 5},
}


def build(parts: tuple[Path, Path], variant: str = "cropping", **arguments):
    llm, tower = parts
    overrides = {"sfe_channels": 8, **OVERRIDES.get(variant, {})}
    return loading.build(str(llm), str(tower), variant=variant, overrides=overrides, **arguments)


def example(model) -> dict[str, torch.Tensor]:
    """One image between two words, and the same with the image last."""
    image = [model.config.image_token_id] * model.config.image_seq_length
    ids = torch.tensor([[1, 300, *image, 400], [1, 301, 401, *image]])
    side = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def perturb_trainable(model) -> dict[str, torch.Tensor]:
    """Moves every trainable tensor by a random amount, and returns copies by name."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_is_what_is_saved_and_loaded_for_each_stage(variant, tiny_parts, tmp_path):
    stages = {
        "pretrain": lambda model: trainable.set_trainable(model, ["projector"]),
        "finetune": lambda model: trainable.set_trainable(model, ["projector", "llm"]),
        "finetune_lora": lambda model: None,
    }
    for stage, freeze in stages.items():
        model, processor = build(tiny_parts, variant)
        freeze(model)
        if stage == "finetune_lora":
            model = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
        wanted = perturb_trainable(model)
        loading.save(model, processor, tmp_path / stage, stage=stage)

        loaded, _ = loading.load(tmp_path / stage, merge=False)
        found = dict(loaded.named_parameters())
        assert wanted, stage
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), f"{stage}: {name}"
        with torch.no_grad():
            inputs = example(loaded)
            torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)


def test_checkpoints_say_what_they_are(tiny_parts, tmp_path):
    model, processor = build(tiny_parts, "pooling", conversation_template="plain")
    trainable.set_trainable(model, ["projector"])
    loading.save(model, processor, tmp_path, stage="pretrain", details={"step": 7})
    card = loading.read_card(str(tmp_path))
    assert card.kind == "projector"
    assert card.parts == {"llm": str(tiny_parts[0]), "vision_tower": str(tiny_parts[1])}
    assert card.stage == "pretrain"
    assert card.conversation_template == "plain"
    assert card.spatial["sfe_maps"] == "pooling"
    assert card.details == {"step": 7}
    assert "torch" in card.versions
    assert not (tmp_path / "model.safetensors").exists()


def test_from_pretrained_and_the_auto_classes_take_every_kind(tiny_parts, tmp_path):
    model, processor = build(tiny_parts)
    trainable.set_trainable(model, ["projector"])
    perturb_trainable(model)
    loading.save(model, processor, tmp_path / "projector", stage="pretrain")
    reference = example(model)
    expected = model(**reference).logits
    for loader in (LlavaSPForCausalLM, AutoModelForImageTextToText):
        torch.testing.assert_close(loader.from_pretrained(tmp_path / "projector")(**reference).logits, expected)

    tuned, _ = loading.load(tmp_path / "projector")
    tuned = trainable.add_lora(tuned, rank=4, alpha=8, dropout=0.0)
    perturb_trainable(tuned)
    loading.save(tuned, processor, tmp_path / "adapter", stage="finetune_lora")
    expected = tuned.eval()(**reference).logits
    assert loading.read_card(str(tmp_path / "adapter")).parts == model.origin
    for loader in (LlavaSPForCausalLM, AutoModelForImageTextToText):
        merged = loader.from_pretrained(tmp_path / "adapter")
        assert type(merged) is LlavaSPForCausalLM
        torch.testing.assert_close(merged(**reference).logits, expected, atol=1e-4, rtol=1e-4)

    merged.save_pretrained(tmp_path / "full")
    processor.save_pretrained(tmp_path / "full")
    for loader in (LlavaSPForCausalLM, AutoModelForImageTextToText):
        torch.testing.assert_close(
            loader.from_pretrained(tmp_path / "full")(**reference).logits, expected, atol=1e-4, rtol=1e-4
        )
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "full"), LlavaSPProcessor)


def test_the_processor_survives_saving(tiny_parts, tmp_path):
    _, processor = build(tiny_parts, image_aspect_ratio="pad", conversation_template="v0", max_length=321)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.num_image_tokens == processor.num_image_tokens == 6 + 144
    assert loaded.image_processor.image_aspect_ratio == "pad"
    assert type(loaded.image_processor) is type(processor.image_processor)
    assert loaded.conversation_template == "v0"
    assert loaded.tokenizer.model_max_length == 321
    assert loaded.tokenizer("a <image> b").input_ids == processor.tokenizer("a <image> b").input_ids
    assert loaded.image_token_id in processor.tokenizer("a <image> b").input_ids


def test_the_seed_decides_the_projector_and_leaves_the_global_state_alone(tiny_parts):
    state = torch.random.get_rng_state()
    first, second, other = (build(tiny_parts, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("sfe.operators.0.weight"):
            assert not torch.equal(a, c)


def test_added_rows_are_zero_and_silent(tiny_parts):
    model, _ = build(tiny_parts)
    rows = model.config.text_config.vocab_size
    assert rows == 1024
    assert model.config.llm_vocab_size == 1000
    assert not model.get_input_embeddings().weight[1000:].any()
    assert not model.lm_head.weight[1000:].any()
    logits = model(**example(model)).logits
    assert logits.shape[-1] == rows
    assert (logits[..., 1000:] == torch.finfo(logits.dtype).min).all()


def test_missing_and_misfitting_checkpoints_are_named(tiny_parts, tmp_path):
    with pytest.raises(UserError, match="no-such-folder"):
        loading.load("no-such-folder/at-all/here")
    with pytest.raises(UserError, match="model type is 'llama'"):
        loading.load(tiny_parts[0])
    with pytest.raises(UserError, match=r"LLM.*absent"):
        loading.build("absent/llm", str(tiny_parts[1]))
    with pytest.raises(UserError, match=r"vision tower.*absent"):
        loading.build(str(tiny_parts[0]), "absent/tower")
    with pytest.raises(UserError, match="Unknown variant 'spiral'"):
        loading.build(str(tiny_parts[0]), str(tiny_parts[1]), variant="spiral")

    folders = {}
    for variant in ("cropping", "pooling"):
        model, processor = build(tiny_parts, variant)
        trainable.set_trainable(model, ["projector"])
        folders[variant] = tmp_path / variant
        loading.save(model, processor, folders[variant], stage="pretrain")
    name = PROJECTOR_NAME
    (folders["cropping"] / name).write_bytes((folders["pooling"] / name).read_bytes())
    with pytest.raises(UserError, match="does not fit this model"):
        loading.load(folders["cropping"])
    (folders["pooling"] / name).write_bytes((folders["pooling"] / name).read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        loading.load(folders["pooling"])
    (folders["pooling"] / name).unlink()
    with pytest.raises(UserError, match="projector"):
        loading.load(folders["pooling"])


def test_damaged_and_foreign_weights_are_named(tiny_parts, tmp_path):
    model, processor = build(tiny_parts)
    tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    loading.save(tuned, processor, tmp_path / "adapter", stage="finetune_lora")
    merged, _ = loading.load(tmp_path / "adapter")
    trainable.set_trainable(merged, ["projector", "llm"])
    loading.save(merged, processor, tmp_path / "full", stage="finetune")
    for kind, file in (("adapter", "adapter_model.safetensors"), ("full", "model.safetensors")):
        path = tmp_path / kind / file
        whole, tensors = path.read_bytes(), load_file(path)
        name = next(name for name in tensors if "q_proj" in name)
        for change in ({f"{name}.strange": tensors[name]}, {}, {name: tensors[name][:1].contiguous()}):
            save_file(
                {**{key: value for key, value in tensors.items() if key != name}, **change}, path, {"format": "pt"}
            )
            with pytest.raises(
                UserError, match=rf"{kind}.* does not fit .*of another shape, first '.*q_proj|has r 4, and"
            ):
                loading.load(tmp_path / kind)
        path.write_bytes(whole[:-100])
        with pytest.raises(UserError, match=rf"{kind}.*is damaged"):
            loading.load(tmp_path / kind)
        path.unlink()
        with pytest.raises(UserError, match=f"from '.*{kind}'"):
            loading.load(tmp_path / kind)


def test_a_card_says_who_wrote_it_or_what_is_wrong(tiny_parts, tmp_path):
    model, processor = build(tiny_parts)
    trainable.set_trainable(model, ["projector"])
    loading.save(model, processor, tmp_path, stage="pretrain")
    file = tmp_path / "llava_sp.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps({**card, "mood": "of a later version that reads as before"}))
    assert loading.read_card(str(tmp_path)).stage == "pretrain"
    for broken in ({**card, "format": 2}, {"format": 1}, [card]):
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match="is no card of format 1"):
            loading.load(tmp_path)


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "finetune_lora"])
def test_a_disk_that_is_full_leaves_what_was_there(stage, tiny_parts, tmp_path):
    model, processor = build(tiny_parts)
    trainable.set_trainable(model, ["projector"] if stage == "pretrain" else ["projector", "llm"])
    if stage == "finetune_lora":
        model = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    loading.save(model, processor, tmp_path, stage=stage)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    perturb_trainable(model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a file that grows beyond is refused
    try:
        with pytest.raises(UserError, match=f"Cannot save to {tmp_path}"):
            loading.save(model, processor, tmp_path, stage=stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
