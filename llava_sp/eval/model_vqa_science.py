"""`python -m llava_sp.eval.model_vqa_science`: answers ScienceQA in LLaVA's form, some of it without images."""

import argparse

from llava_sp.eval.model_vqa import command, make_parser
from llava_sp.eval.tables import read_science
from llava_sp.flags import parse_flags


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "model_vqa_science",
        __doc__,
        lambda options: read_science(options.question_file, single_pred_prompt=options.single_pred_prompt),
        question_file="JSON: a list of id, image (optional), conversations",
    )
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    return parse_flags(parser, argv)


main = command(parse)

if __name__ == "__main__":
    main()
