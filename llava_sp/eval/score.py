"""`python -m llava_sp.eval.score`: scores answers, ours or LLaVA's, or writes what a benchmark's server takes."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from llava_sp.eval.answers import read_answers
from llava_sp.eval.benchmarks import BENCHMARKS, get_benchmark
from llava_sp.eval.benchmarks.base import Scores
from llava_sp.eval.benchmarks.judge import API_KEY, BASE_URL, MODEL
from llava_sp.flags import parse_flags
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.files import sha256_file, write_json
from llava_sp.utils.logging import setup_logging


@command_line
def main() -> None:
    """Scores the answers that the command line names."""
    setup_logging()
    parser = argparse.ArgumentParser(
        prog="python -m llava_sp.eval.score",
        description="Scores an answers file.",
        epilog=f"The environment names a judge, where one is needed: {', '.join((MODEL, BASE_URL, API_KEY))}.",
    )
    add = parser.add_argument
    add("benchmark", help=f"one of {', '.join(BENCHMARKS)}")
    add("--answers-file", type=Path, required=True, help="JSON lines in LLaVA's format")
    add("--data-root", type=Path, required=True, help="LLaVA's folder of data, or this benchmark's own in it")
    add("--output", type=Path, required=True, help="JSON of scores; for a server's benchmark, the file to hand in")
    add("--strict", action="store_true", help="score without the quirks of the published scorers")
    options = parse_flags(parser, sys.argv[1:])

    benchmark = get_benchmark(options.benchmark)
    answers = read_answers(options.answers_file)
    root = options.data_root / benchmark.folder
    if not root.is_dir():
        root = options.data_root
    try:
        if benchmark.scored == "server":
            benchmark.submission(answers, root, options.output)
            out(f"{options.output} is to be handed in to the server of {benchmark.title}")
            return
        reviews = options.output.with_suffix(".reviews.jsonl")
        scores = benchmark.score(answers, root, strict=options.strict, reviews=reviews)
        answered = {"answers_file": str(options.answers_file), "answers_sha256": sha256_file(options.answers_file)}
        write_json(
            options.output, {"benchmark": benchmark.name, **answered, "strict": options.strict, **asdict(scores)}
        )
        out(format_scores(benchmark.title, scores))
        if benchmark.suffix is not None:
            handed_in = options.output.with_suffix(f".submission{benchmark.suffix}")
            benchmark.submission(answers, root, handed_in)
            out(f"for the benchmark's own evaluator: {handed_in}")
    except OSError as error:
        raise UserError(f"{error.filename or options.output}: {error.strerror}.") from error


def format_scores(title: str, scores: Scores) -> str:
    """Lays scores out as lines: the headline first, then the other metrics, the categories, and what was odd."""
    width = max(map(len, (*scores.metrics, *scores.categories)))
    ordered = {scores.headline: scores.metrics[scores.headline]} | scores.metrics
    lines = [f"{title}: {scores.rule}"]
    lines += [f"  {name:<{width}} {value:10.2f}" for name, value in ordered.items()]
    lines += [f"    {name:<{width}} {value:8.2f}" for name, value in scores.categories.items()]
    lines += [f"  {name}: {value}" for name, value in (scores.notes | scores.details).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
