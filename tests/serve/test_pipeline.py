"""transformers' own pipeline, from a checkpoint's folder alone."""

import pytest
from PIL import Image
from transformers import pipeline

from llava_sp.data.conversation import get_template
from llava_sp.model import loading

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def chat(image_file, text: str) -> list[dict]:
    content = [{"type": "image", "path": str(image_file)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("kind", ["full", "projector", "adapter"])
def test_every_kind_answers_a_chat_a_batch_and_a_prompt(kind, checkpoints, image_file):
    model, processor = loading.load(checkpoints[kind])
    wanted = []
    chats = [chat(image_file, text) for text in ("What is in the image?", "Is there one digit, or are there several?")]
    for one in chats:
        inputs = processor.apply_chat_template(
            one, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        wanted.append(processor.decode(output, skip_special_tokens=True))

    answer = pipeline("image-text-to-text", model=str(checkpoints[kind]))
    settings = {"generate_kwargs": GREEDY, "return_full_text": False}
    assert answer(text=chats[0], **settings)[0]["generated_text"] == wanted[0]
    batch = answer(text=chats, batch_size=2, **settings)
    assert [one[0]["generated_text"] for one in batch] == wanted

    prompt = get_template("v1").prompt_text([{"from": "human", "value": "<image>\nWhat is in the image?"}])
    picture = Image.open(image_file).convert("RGB")
    assert answer(images=picture, text=prompt, **settings)[0]["generated_text"] == wanted[0]
