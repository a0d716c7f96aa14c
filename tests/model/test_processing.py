"""The processor by transformers' own ways: chat template, pipeline, and the same ids as the renderer."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, pipeline

from llava_sp import LlavaSPProcessor
from llava_sp.data.conversation import get_template
from llava_sp.model import loading
from llava_sp.utils.errors import UserError


@pytest.fixture(scope="module")
def saved(tiny_parts, tmp_path_factory):
    """A whole tiny model, saved, with the template v1."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = loading.build(
        *map(str, tiny_parts), overrides={"sfe_channels": 8}, chat_template=get_template("v1").chat_template()
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]},
    {"role": "assistant", "content": "A test."},
    {"role": "user", "content": "Sure?"},
]
TURNS = [
    {"from": "human", "value": "What is this?\n<image>"},
    {"from": "gpt", "value": "A test."},
    {"from": "human", "value": "Sure?"},
]


def test_the_chat_template_gives_the_ids_of_the_renderer(saved):
    processor = AutoProcessor.from_pretrained(saved)
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    inputs = processor(text=text, images=picture(), return_tensors="pt")
    ids = get_template("v1").render_prompt(TURNS, processor.tokenizer, processor.image_token_id)
    at = ids.index(processor.image_token_id)
    expected = ids[:at] + [processor.image_token_id] * processor.num_image_tokens + ids[at + 1 :]
    assert inputs["input_ids"][0].tolist() == expected
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_the_tokenizer_by_itself_gives_the_ids_of_the_renderer(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    text = get_template("v1").prompt_text(TURNS)
    processor = LlavaSPProcessor.from_pretrained(saved)
    ids = get_template("v1").render_prompt(TURNS, processor.tokenizer, processor.image_token_id)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert tokenizer("word").input_ids[0] == tokenizer.bos_token_id
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.eos_token) == ("left", "<unk>", "</s>")


def test_text_without_its_begin_token_gets_one(saved):
    processor = AutoProcessor.from_pretrained(saved)
    begin = processor.tokenizer.bos_token_id
    for text in ("A word", "<s>A word", ["<s>A word", "<s>Another word"]):
        for ids in processor(text=text)["input_ids"]:
            assert ids.count(begin) == 1


def test_one_call_from_messages_to_inputs(saved):
    processor = AutoProcessor.from_pretrained(saved)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == processor.num_image_tokens
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_the_pipeline_answers_single_and_batched(saved):
    answer = pipeline("image-text-to-text", model=str(saved), processor=AutoProcessor.from_pretrained(saved))
    messages = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}]
    arguments = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    single = answer(text=messages, **arguments)[0]["generated_text"]
    batched = answer(text=[messages, messages], batch_size=2, **arguments)
    assert isinstance(single, str)
    assert [result[0]["generated_text"] for result in batched] == [single, single]


def test_text_that_leaves_no_room_for_the_image_is_refused(saved):
    processor = AutoProcessor.from_pretrained(saved)
    with pytest.raises(ValueError, match="trunc"):
        processor(text="<image> what?", images=picture(), truncation=True, max_length=20)


def test_a_tokenizer_without_the_image_token_is_refused(tiny_parts, saved):
    processor = AutoProcessor.from_pretrained(saved)
    with pytest.raises(UserError, match="has no '<image>' token"):
        LlavaSPProcessor(processor.image_processor, AutoTokenizer.from_pretrained(tiny_parts[0]), patch_size=4)
