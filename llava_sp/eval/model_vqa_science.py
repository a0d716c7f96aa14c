"""`python -m llava_sp.eval.model_vqa_science`: answers ScienceQA in LLaVA's form, some of it without images."""

import argparse
import sys

from llava_sp.eval.flags import parse_flags
from llava_sp.eval.model_vqa import answer_file, make_parser
from llava_sp.eval.tables import read_science
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import setup_logging


@command_line
def main() -> None:
    """Answers the questions that the command line names."""
    setup_logging()
    answer_file(parse(sys.argv[1:]))


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "model_vqa_science",
        lambda options: read_science(options.question_file, single_pred_prompt=options.single_pred_prompt),
        question_file="JSON: a list of id, image (optional), conversations",
    )
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    return parse_flags(parser, argv)


if __name__ == "__main__":
    main()
