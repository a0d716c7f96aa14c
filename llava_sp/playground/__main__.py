"""`python -m llava_sp.playground COMMAND`: the tiny world from the command line."""

import argparse

from llava_sp.playground import base_models, quickstart, world
from llava_sp.utils.commands import summary
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import setup_logging

# Each module has `add_arguments(parser)` and `run(args)`; the first line of its docstring is the command's help.
COMMANDS = {"quickstart": quickstart, "build": world, "build-base": base_models}


@command_line
def main() -> None:
    """Runs one of `COMMANDS`."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.playground", description=summary(__doc__))
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        told = summary(module.__doc__)
        command = commands.add_parser(name, help=told, description=told)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    setup_logging()
    args.run(args)


if __name__ == "__main__":
    main()
