"""What a command prints as its result (logging is for what happens on the way)."""

import sys


def out(text: str = "") -> None:
    """Writes a line to standard output at once, so that progress shows through pipes too."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
