"""`python -m llava_sp.convert COMMAND`: converts checkpoints."""

import argparse
from collections.abc import Callable

import torch
import transformers

from llava_sp.convert.export import merge, to_official
from llava_sp.convert.hub import to_hub
from llava_sp.convert.official import import_official
from llava_sp.convert.verify import Agreement
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import setup_logging

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@command_line
def main() -> None:
    """Runs one conversion and reports it."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.convert", description=summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    official = _add(commands, _import, "official", "import an official LLaVA-SP checkpoint")
    llava = _add(commands, _import, "llava", "import LLaVA-1.5, in its own layout or in llava-hf's")
    merged = _add(commands, _merge, "merge-lora", "write an adapter (or projector) and what it stands on as one")
    exported = _add(commands, _to_official, "to-official", "write a checkpoint for the official scripts")
    hub = _add(commands, _to_hub, "to-hub", "write a folder for the Hugging Face Hub")

    for command in (official, llava):
        add = command.add_argument
        add("--base", help="the LLM that a LoRA or projector output stands on (default: what the adapter names)")
        add("--vision-tower", help="the vision tower, in place of the one that config.json names")
        add("--conv-mode", default="v1", help="template it was tuned with (default: %(default)s)")
        add("--allow-missing", nargs="+", default=[], metavar="NAME", help="tensors to initialise anew")
        add("--allow-left-over", nargs="+", default=[], metavar="NAME", help="tensors to ignore")
        add("--seed", type=int, default=0, help="seed of what is newly initialised")
    llava.add_argument("--variant", help="warm start: add this variant's spatial part, newly initialised")
    for command in (merged, exported, hub):
        command.add_argument("--base", help="what it stands on, in place of what its card names")
        command.add_argument(
            "--allow-other-base",
            action="store_true",
            help="take a base of other weights than those it was trained with",
        )
    exported.add_argument("--vision-tower", help="name that the official code is to load the tower by")
    exported.add_argument("--tokenizer", help="folder or name that has the LLM's own tokenizer files")
    exported.add_argument("--tower-by-name", action="store_true", help="leave the tower's weights out")
    hub.add_argument("--license", help="identifier of the weights' licence, for the model card")
    hub.add_argument("--scores", help="JSON file of measured scores, for the model card")

    args = parser.parse_args()
    setup_logging()
    transformers.logging.set_verbosity_error()  # it wonders at official configurations, which are our business here
    agreement = args.run(args)
    out(f"wrote {args.output}")
    out(f"  logits against the source: {agreement or 'not compared; see --verify'}")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    run: Callable[[argparse.Namespace], Agreement | None],
    name: str,
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    add = command.add_argument
    add("--checkpoint", required=True, help="folder or Hub name of the checkpoint")
    add("--output", required=True, help="folder to write; must not exist, or be empty")
    add("--dtype", choices=DTYPES, default="auto", help="type of the weights to write; auto: that of the LLM")
    add("--verify", action="store_true", help="compare the logits of source and result; keep it only if they agree")
    return command


def _import(args: argparse.Namespace) -> Agreement | None:
    report = import_official(
        args.checkpoint,
        args.output,
        base=args.base,
        vision_tower=args.vision_tower,
        variant=getattr(args, "variant", None),
        conversation_template=args.conv_mode,
        allow_missing=args.allow_missing,
        allow_left_over=args.allow_left_over,
        dtype=DTYPES[args.dtype],
        seed=args.seed,
        verify=args.verify,
    )
    out(f"imported a {report.source} checkpoint into {args.output}")
    for name, value in report.fields.items():
        out(f"  {name}: {value}")
    for title, names in (("newly initialised", report.initialised), ("left over", report.left_over)):
        out(f"  {title}: {', '.join(names) or 'nothing'}")
    return report.agreement


def _merge(args: argparse.Namespace) -> Agreement | None:
    return merge(args.checkpoint, args.output, **_shared(args))


def _to_official(args: argparse.Namespace) -> Agreement | None:
    return to_official(
        args.checkpoint,
        args.output,
        vision_tower=args.vision_tower,
        tokenizer=args.tokenizer,
        tower_inside=not args.tower_by_name,
        **_shared(args),
    )


def _to_hub(args: argparse.Namespace) -> Agreement | None:
    return to_hub(args.checkpoint, args.output, licence=args.license, scores=args.scores, **_shared(args))


def _shared(args: argparse.Namespace) -> dict:
    return {
        "base": args.base,
        "allow_other_base": args.allow_other_base,
        "dtype": DTYPES[args.dtype],
        "verify": args.verify,
    }


if __name__ == "__main__":
    main()
