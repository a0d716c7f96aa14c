"""`python -m llava_sp.eval.model_vqa_loader`: `model_vqa` for short answers, of at most 128 tokens by default."""

import argparse
import sys

from llava_sp.eval.flags import parse_flags
from llava_sp.eval.model_vqa import answer_file, make_parser
from llava_sp.eval.questions import read_questions
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import setup_logging


@command_line
def main() -> None:
    """Answers the questions that the command line names."""
    setup_logging()
    answer_file(parse(sys.argv[1:]))


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser("model_vqa_loader", lambda options: read_questions(options.question_file), max_new_tokens=128)
    return parse_flags(parser, argv)


if __name__ == "__main__":
    main()
