"""The chat in the terminal."""

import sys

import pytest
import torch
from PIL import Image

from llava_sp.data.conversation import get_template
from llava_sp.model.loading import load
from llava_sp.serve import __main__ as command
from llava_sp.serve.chat import chat

QUESTIONS = ["What is in the image?", "Why?"]
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def loaded(checkpoints):
    return load(checkpoints["full"])


def said(messages) -> list[str]:
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


def test_answers_are_those_of_the_one_renderer(loaded, image_file, capsys):
    model, processor = loaded
    template = get_template("v1")
    image = Image.open(image_file).convert("RGB")
    messages = chat(model, processor, template, image, QUESTIONS, **GREEDY)
    first, answer, second, last = said(messages)
    assert [first, second] == QUESTIONS

    turns = [
        {"from": "human", "value": f"<image>\n{first}"},
        {"from": "gpt", "value": answer},
        {"from": "human", "value": second},
    ]
    ids = template.render_prompt(turns, processor.tokenizer, processor.image_token_id)
    place = ids.index(processor.image_token_id)
    ids[place : place + 1] = [processor.image_token_id] * (6 + 144)
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    output = model.generate(torch.tensor([ids]), pixel_values=pixels, **GREEDY)
    assert processor.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip() == last
    shown = capsys.readouterr().out
    assert answer in shown
    assert last in shown


def test_the_command_line_talks_until_an_empty_line(checkpoints, image_file, monkeypatch, capsys):
    typed = iter(["What is in the image?", "Why?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    flags = ["--model-path", str(checkpoints["full"]), "--device", "cpu", "--temperature", "0", "--max_new_tokens", "4"]
    monkeypatch.setattr("sys.argv", ["serve", "chat", *flags, "--image-file", str(image_file)])
    command.main()
    assert next(typed, None) is None
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "--model-path", "none", "--image-file", "no.png"], "no.png"),
        (["talk"], "chat|openai"),
        ([], "chat|openai"),
    ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serve", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "llava_sp.serve.server", raising=False)
    monkeypatch.setattr("sys.argv", ["serve", "openai", "--model-path", "none"])
    with pytest.raises(SystemExit):
        command.main()
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
