"""The benchmarks, one file each: data files, questions, generation settings, scorer, what is handed in."""

from llava_sp.eval.benchmarks.base import Benchmark
from llava_sp.eval.benchmarks.pope import Pope
from llava_sp.utils.errors import UserError

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (Pope(),)}
"""All benchmarks by name."""


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark of that name.

    Raises:
        UserError: There is none; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise UserError(f"There is no benchmark {name!r}. Choose of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
