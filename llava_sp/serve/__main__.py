"""`python -m llava_sp.serve NAME [flags]`: answers questions, in the terminal or over HTTP."""

import importlib
import sys

from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging

COMMANDS = {
    "chat": "llava_sp.serve.chat",
    "openai": "llava_sp.serve.server",
}


@command_line
def main() -> None:
    """Hands the remaining flags to the command that the first argument names."""
    setup_logging()
    name = sys.argv[1] if len(sys.argv) > 1 else None
    usage = f"python -m llava_sp.serve {'|'.join(COMMANDS)} [flags]"
    if name in ("-h", "--help"):
        out(f"usage: {usage}\n\n{__doc__}\nThe flags: python -m llava_sp.serve NAME --help")
        return
    if name not in COMMANDS:
        raise UserError(f"Name a command: {usage}.")
    try:
        command = importlib.import_module(COMMANDS[name])
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs {error.name}, which is not installed: pip install 'llava-sp[serve]'.") from error
    command.main(sys.argv[2:])


if __name__ == "__main__":
    main()
