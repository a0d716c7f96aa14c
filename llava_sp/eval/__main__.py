"""`python -m llava_sp.eval`: answers and scores benchmarks with one command, on all GPUs of the machine."""

import argparse
import os
import sys
from pathlib import Path

from llava_sp.eval.answering import model_name
from llava_sp.eval.benchmarks import BENCHMARKS, get_benchmark
from llava_sp.eval.benchmarks.base import Benchmark
from llava_sp.eval.suite import evaluate
from llava_sp.flags import add_model_flags, check_model_flags, parse_flags
from llava_sp.model.loading import read_card
from llava_sp.model.parts import absolute
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging
from llava_sp.utils.ranks import count_processes, end_with_launcher, run_torchrun

SCORED = {"here": "scored here", "server": "scored by its server", "judge": "scored by a judge model"}


@command_line
def main() -> None:
    """Lists the benchmarks, is one rank of an evaluation, or starts as many ranks as there are GPUs."""
    end_with_launcher()
    setup_logging()
    arguments = sys.argv[1:]
    if "list" in _names(arguments):
        list_benchmarks()
        return
    options = parse(arguments)
    benchmarks = choose(options.benchmark)
    check_model_flags(options)
    read_card(options.model_path)  # says so if there is no checkpoint
    processes = 1 if "RANK" in os.environ else _count(options)
    if processes > 1:
        command = [f"--nproc_per_node={processes}", "--standalone", "-m", "llava_sp.eval", *arguments]
        sys.exit(run_torchrun(command, mend="The same command goes on from where it was ended."))
    sys.exit(0 if evaluate(benchmarks, options) else 1)


def choose(names: str) -> list[Benchmark]:
    """Returns the benchmarks that `--benchmark` names, each once.

    Raises:
        UserError: There is no such benchmark.
    """
    if names == "all":
        return list(BENCHMARKS.values())
    return [get_benchmark(name) for name in dict.fromkeys(names.split(","))]


def list_benchmarks() -> None:
    """Prints what each benchmark needs, where that comes from and goes, and who scores it."""
    for benchmark in BENCHMARKS.values():
        out(f"{benchmark.name}: {benchmark.title}, {SCORED[benchmark.scored]}; in DATA_ROOT/{benchmark.folder}:")
        for file in benchmark.files:
            out(f"    {file.name}: {file.what}; from {file.source}{' (optional)' if file.optional else ''}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m llava_sp.eval", description="Answers and scores benchmarks. A killed run continues."
    )
    add = parser.add_argument
    add("--benchmark", required=True, help="names, separated by commas; all; or list to see what each needs")
    add_model_flags(parser)
    add("--data-root", type=Path, default="playground/data/eval", help="LLaVA's folder of data (default: %(default)s)")
    add("--output", type=Path, help="folder for answers, scores, submissions (default: results/NAME_OF_THE_MODEL)")
    add("--batch-size", type=int, default=8, help="questions at a time; no answer depends on it (default: %(default)s)")
    add("--limit", type=int, help="only the first questions of each benchmark, for a look; marked in the scores")
    add("--strict", action="store_true", help="score without the quirks of the published scorers")
    add("--nproc-per-node", type=int, help="processes; default: one per GPU")
    options = parse_flags(parser, arguments)
    if options.output is None:
        options.output = Path("results", model_name(absolute(options.model_path)))
    for name in ("batch_size", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")
    return options


def _names(arguments: list[str]) -> str:
    """Returns what `--benchmark` says, without asking for the flags that the list does not need, or for a name."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--benchmark", nargs="?", const="", default="")
    return parser.parse_known_args(arguments)[0].benchmark


def _count(options: argparse.Namespace) -> int:
    if options.device == "cuda":
        return count_processes(options.nproc_per_node, use_cpu=False, cpu_flag="--device cpu")
    if options.device == "cpu":
        return options.nproc_per_node or 1
    if options.nproc_per_node not in (None, 1):
        raise UserError(f"--nproc-per-node {options.nproc_per_node} is for --device cuda or cpu, not {options.device}.")
    return 1


if __name__ == "__main__":
    main()
