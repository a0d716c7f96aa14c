"""Logging set up once, the same for every command."""

import logging
import os
import sys
import warnings


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; call with `__name__`."""
    return logging.getLogger(name)


def setup_logging(level: int = logging.INFO) -> None:
    """Sends this package's log to standard error: `level` and above on the first rank, warnings from the others."""
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if int(os.environ.get("WORLD_SIZE", "1")) == 1 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
    package = logging.getLogger("llava_sp")
    package.handlers[:] = [handler]
    package.setLevel(level if rank == 0 else logging.WARNING)
    package.propagate = False
    # What these libraries will rename one day is between them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|transformers|peft|accelerate)\b")
