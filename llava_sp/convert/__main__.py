"""Converts checkpoints: `python -m llava_sp.convert official --checkpoint DIR --output DIR`."""

import argparse

import transformers

from llava_sp.convert.official import import_official
from llava_sp.utils.console import out
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import setup_logging


@command_line
def main() -> None:
    """Runs one conversion and reports it."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    official = commands.add_parser("official", help="import an official LLaVA-SP or LLaVA-1.5 checkpoint")
    official.add_argument("--checkpoint", required=True, help="folder of the official checkpoint")
    official.add_argument("--output", required=True, help="folder to write; must not exist, or be empty")
    official.add_argument("--base", help="the LLM that a LoRA or projector output stands on")
    official.add_argument("--vision-tower", help="the vision tower, in place of the one that config.json names")
    official.add_argument("--conv-mode", default="v1", help="template it was tuned with (default: %(default)s)")
    official.add_argument("--allow-missing", nargs="+", default=[], metavar="NAME", help="tensors to initialise anew")
    official.add_argument("--allow-left-over", nargs="+", default=[], metavar="NAME", help="tensors to ignore")
    args = parser.parse_args()
    setup_logging()
    transformers.logging.set_verbosity_error()  # it wonders at official configurations, which are our business here
    report = import_official(
        args.checkpoint,
        args.output,
        base=args.base,
        vision_tower=args.vision_tower,
        conversation_template=args.conv_mode,
        allow_missing=args.allow_missing,
        allow_left_over=args.allow_left_over,
    )
    out(f"imported a {report.source} checkpoint into {args.output}")
    for name, value in report.fields.items():
        out(f"  {name}: {value}")
    for title, names in (("newly initialised", report.initialised), ("left over", report.left_over)):
        out(f"  {title}: {', '.join(names) or 'nothing'}")


if __name__ == "__main__":
    main()
