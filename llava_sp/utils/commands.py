"""What command lines share: help from a docstring, and commands that are modules of their own."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping

from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging


def summary(doc: str | None) -> str:
    """Returns what the first line of a module's docstring says, without the command before it and without backticks."""
    told = re.sub(r"^`[^`]*`: ", "", (doc or "").partition("\n")[0]).replace("`", "")
    return told[:1].upper() + told[1:]


def dispatch(package: str, doc: str | None, modules: Mapping[str, str], *, extra: str) -> Callable[[], None]:
    """Returns the entry point of a package whose commands are modules, each imported when it is asked for.

    Args:
        package: The package.
        doc: What it is for, the docstring of its `__main__`.
        modules: Its modules by the names of their commands; each has a `main` that takes the remaining flags.
        extra: What installs the packages that they need, in pyproject.toml.
    """
    usage = f"python -m {package} {'|'.join(modules)} [flags]"

    @command_line
    def main() -> None:
        """Hands the remaining flags to the command that the first argument names."""
        setup_logging()
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name in ("-h", "--help"):
            out(f"usage: {usage}\n\n{summary(doc)}\n\nThe flags: python -m {package} NAME --help")
            return
        if name not in modules:
            raise UserError(f"Name a command: {usage}.")
        try:
            command = importlib.import_module(f"{package}.{modules[name]}")
        except ModuleNotFoundError as error:
            raise UserError(
                f"{name} needs {error.name}, which is not installed: pip install -e '.[{extra}]'."
            ) from error
        command.main(sys.argv[2:])

    return main
