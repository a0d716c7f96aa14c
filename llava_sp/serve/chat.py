"""`python -m llava_sp.serve chat`: talks with a model about an image, in the terminal."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL.Image import Image
from transformers import TextStreamer

from llava_sp.data.conversation import Template
from llava_sp.data.images import load_image
from llava_sp.flags import add_model_flags, check_model_flags, load_model, parse_flags
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out


def main(argv: list[str]) -> None:
    """Loads the model and answers line by line, until an empty line or the end of the input."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.serve chat", description=summary(__doc__))
    add_model_flags(parser)
    parser.add_argument("--image-file", type=Path, help="the image to talk about; without one, text alone")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 for greedy decoding (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    options = parse_flags(parser, argv)

    check_model_flags(options)
    image = None
    if options.image_file is not None:
        path = options.image_file.resolve()
        image = load_image(path.parent, path.name)
    model, processor, template = load_model(options)
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": options.temperature > 0}
    if settings["do_sample"]:
        settings |= {"temperature": options.temperature, "top_k": 0}
    out("An empty line ends the chat.")
    chat(model, processor, template, image, _typed_questions(), **settings)


def chat(
    model: LlavaSPForCausalLM,
    processor: LlavaSPProcessor,
    template: Template,
    image: Image | None,
    questions: Iterable[str],
    **settings: Any,
) -> list[dict[str, Any]]:
    """Answers questions one after the other, each knowing what was said before, and writes as it generates.

    Args:
        model: The model in evaluation mode.
        processor: Its processor.
        template: The conversation to talk in.
        image: What the first question is about; `None` for text alone.
        questions: The questions.
        **settings: Passed on to `generate`.

    Returns:
        The messages of both sides, as chat templates take them.
    """
    processor.chat_template = template.chat_template()
    tokenizer = processor.tokenizer
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages: list[dict[str, Any]] = []
    for question in questions:
        picture = [{"type": "image", "image": image}] if image is not None and not messages else []
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        output = model.generate(
            **inputs, **settings, streamer=streamer, stop_strings=[template.stop], tokenizer=tokenizer
        )
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answer = answer.split(template.stop)[0].strip()
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _typed_questions() -> Iterator[str]:
    try:
        while question := input("USER: ").strip():
            yield question
    except EOFError:
        out()
