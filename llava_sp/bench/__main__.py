"""`python -m llava_sp.bench NAME [flags]`: runs one benchmark."""

import importlib
import sys

from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging

BENCHMARKS = {
    "projector": "llava_sp.bench.projector",
    "dataset": "llava_sp.bench.dataset",
    "generate": "llava_sp.bench.generate",
    "reliability": "llava_sp.bench.reliability",
}


@command_line
def main() -> None:
    """Hands the remaining flags to the benchmark that the first argument names."""
    setup_logging()
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name not in BENCHMARKS:
        raise UserError(f"Name a benchmark: python -m llava_sp.bench {'|'.join(BENCHMARKS)} [flags].")
    importlib.import_module(BENCHMARKS[name]).main(sys.argv[2:])


if __name__ == "__main__":
    main()
