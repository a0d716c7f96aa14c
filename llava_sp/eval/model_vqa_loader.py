"""`python -m llava_sp.eval.model_vqa_loader`: answers as `model_vqa` does, in at most 128 tokens by default."""

import argparse

from llava_sp.eval.model_vqa import command, make_parser
from llava_sp.flags import parse_flags


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    return parse_flags(make_parser("model_vqa_loader", __doc__, max_new_tokens=128), argv)


main = command(parse)

if __name__ == "__main__":
    main()
