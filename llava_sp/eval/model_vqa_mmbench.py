"""`python -m llava_sp.eval.model_vqa_mmbench`: answers a table of MMBench, which holds the images."""

import argparse

from llava_sp.eval.model_vqa import command, make_parser
from llava_sp.eval.questions import Question
from llava_sp.eval.tables import read_mmbench
from llava_sp.flags import parse_flags


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    table = "tab-separated: index, question, hint, A, B, C, D, image"
    parser = make_parser("model_vqa_mmbench", __doc__, _read, question_file=table)
    add = parser.add_argument
    add("--lang", choices=["en", "cn"], default="en", help="language in which --single-pred-prompt asks")
    add("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    add("--all-rounds", action="store_true", help="ask once with each option in the first place")
    return parse_flags(parser, argv)


def _read(options: argparse.Namespace) -> list[Question]:
    return read_mmbench(
        options.question_file,
        lang=options.lang,
        single_pred_prompt=options.single_pred_prompt,
        all_rounds=options.all_rounds,
    )


main = command(parse)

if __name__ == "__main__":
    main()
