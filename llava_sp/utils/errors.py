"""Errors that a user can cause, and how a command line shows them."""

import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: a wrong path, flag, file or combination.

    The message is one sentence or two that name the culprit and the mend. Command lines print it without a traceback.
    """


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a command's entry point so that what a user can cause ends in one clear line.

    A `UserError` exits with status 2, Ctrl-C with 130; everything else keeps its traceback, for it is our fault.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted\n")
            sys.exit(130)

    return run
