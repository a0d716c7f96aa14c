"""`python -m llava_sp.eval.run_llava`: one question about one image (or about none), the answer on standard output."""

import argparse
import os
import sys
from pathlib import Path

from llava_sp.eval.flags import add_generation_flags, generation_settings
from llava_sp.eval.inference import Failure, generate_answers
from llava_sp.eval.questions import Question
from llava_sp.flags import add_model_flags, check_model_flags, load_model, parse_flags
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging


@command_line
def main() -> None:
    """Answers the question of the command line."""
    setup_logging()
    parser = argparse.ArgumentParser(prog="python -m llava_sp.eval.run_llava", description="Answers one question.")
    add_model_flags(parser)
    parser.add_argument("--image-file", type=Path, help="the image; without one, the question is text alone")
    parser.add_argument("--query", required=True, help="the question")
    add_generation_flags(parser, max_new_tokens=512)
    options = parse_flags(parser, sys.argv[1:])

    check_model_flags(options)
    settings = generation_settings(options)
    if options.image_file and not os.path.isfile(options.image_file):
        raise UserError(f"--image-file {options.image_file}: there is no such file.")
    image = options.image_file and options.image_file.resolve()
    folder = image.parent if image else Path()
    question = Question("--query", options.query, image and image.name)
    model, processor, template = load_model(options)
    for _, answer in generate_answers(
        model, processor, [question], image_folder=folder, template=template, settings=settings
    ):
        if isinstance(answer, Failure):
            raise UserError(answer.reason)
        out(answer)


if __name__ == "__main__":
    main()
