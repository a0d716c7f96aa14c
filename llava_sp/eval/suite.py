"""Benchmarks from questions to scores: each rank answers its share, the first one joins, scores and writes."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from llava_sp.eval.answering import Respondent, report_failures, what_decides_the_answers
from llava_sp.eval.answers import AnswersFile
from llava_sp.eval.benchmarks.base import Benchmark, Scores, item_key, mean
from llava_sp.eval.inference import share_of
from llava_sp.eval.provenance import checkpoint_digest, describe
from llava_sp.eval.questions import Question, check_images
from llava_sp.model.parts import absolute
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json
from llava_sp.utils.logging import get_logger
from llava_sp.utils.ranks import is_main, rank, world_size

logger = get_logger(__name__)

SUMMARY_NAME = "summary.json"
SCORES_NAME = "scores.json"
ANSWERS_NAME = "answers.jsonl"
REVIEWS_NAME = "reviews.jsonl"


@dataclass(frozen=True)
class Job:
    """A benchmark whose data are there.

    Attributes:
        benchmark: The benchmark.
        questions: All its questions.
        asked: Those that are asked: all of them, unless `--limit` says otherwise.
        answers: Where the answers go.
    """

    benchmark: Benchmark
    questions: list[Question]
    asked: list[Question]
    answers: AnswersFile


def evaluate(benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> bool:
    """Runs benchmarks with one model; what a former run has answered is kept.

    Args:
        benchmarks: What to run.
        options: The flags of `python -m llava_sp.eval`.

    Returns:
        Whether all of them ran.

    Raises:
        UserError: The model cannot be loaded, or the output folder is another model's.
    """
    with _joined():
        jobs, reasons = _prepare_together(benchmarks, options)
        respondent = Respondent(options)
        for job in jobs:
            _answer_share(job, respondent, options)
            if is_main():
                try:
                    _conclude(job, options)
                except (UserError, OSError) as error:
                    reasons[job.benchmark.name] = str(error)
                except Exception as error:  # the answers stay, and the other benchmarks go on
                    logger.exception("%s cannot be scored", job.benchmark.name)
                    reasons[job.benchmark.name] = f"{type(error).__name__} while scoring: {error}"
                _summarise(options, reasons)
        if is_main():
            _summarise(options, reasons)
            _report(options.output)
    return not reasons


def prepare(benchmark: Benchmark, options: argparse.Namespace) -> Job:
    """Reads a benchmark's questions and opens its answers file.

    Raises:
        UserError: Data are missing or malformed, or the answers that are there were made otherwise.
    """
    root = options.data_root / benchmark.folder
    missing = benchmark.missing(root)
    if missing:
        lines = [f"{root / file.name} ({file.what}), from {file.source}" for file in missing]
        raise UserError("\n  - ".join(["its data are not all there. Put in place:", *lines]))
    questions = benchmark.questions(root)
    asked = questions if options.limit is None else benchmark.first(questions, options.limit)
    images = root / benchmark.images
    check_images(asked, images)
    settings = what_decides_the_answers(options, benchmark.settings, images, questions)
    path = options.output / benchmark.name / ANSWERS_NAME
    return Job(benchmark, questions, asked, AnswersFile(path, settings, rank=rank(), ranks=world_size()))


def _prepare_together(benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> tuple[list[Job], dict[str, str]]:
    """Prepares on the first rank, which joins what a killed run left; then on the others, which read that."""
    jobs, reasons = [], {}
    if is_main():
        _claim(options)
        for benchmark in benchmarks:
            try:
                jobs.append(prepare(benchmark, options))
            except UserError as error:
                reasons[benchmark.name] = str(error)
                logger.warning("%s does not run: %s", benchmark.name, error)
    runnable = [[job.benchmark.name for job in jobs]]
    if world_size() > 1:
        dist.broadcast_object_list(runnable)
    if not is_main():
        jobs = [prepare(benchmark, options) for benchmark in benchmarks if benchmark.name in runnable[0]]
    return jobs, reasons


def _answer_share(job: Job, respondent: Respondent, options: argparse.Namespace) -> None:
    """Answers this rank's share of what has no answer yet, and waits for the others."""
    share = share_of(job.answers.remaining(job.asked), rank(), world_size())
    respondent.answer(
        share,
        job.answers,
        image_folder=options.data_root / job.benchmark.folder / job.benchmark.images,
        settings=job.benchmark.settings,
        title=job.benchmark.name,
        quiet=not is_main(),
    )
    if world_size() > 1:
        dist.barrier()


def _conclude(job: Job, options: argparse.Namespace) -> None:
    """Joins the answers, scores them or writes what the server takes, and says what they were made with."""
    benchmark, answers = job.benchmark, job.answers
    answers.finish(job.questions)
    report_failures(answers)
    given = [answers.answered[question.key] for question in job.asked if question.key in answers.answered]
    lost = len(job.asked) - len(given) - sum(question.key in answers.failed for question in job.asked)
    if lost:
        raise UserError(f"{lost} answers are neither in {answers.path} nor among its failures; run the command again.")
    if not given:
        raise UserError(f"None of the {len(job.asked)} questions could be answered; see {answers.failures_path}.")
    root, folder = options.data_root / benchmark.folder, options.output / benchmark.name
    result: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "scored": benchmark.scored,
        "questions": len(job.questions),
        "limit": options.limit,
        "failures": len(answers.failed),
    }
    if benchmark.suffix is not None and options.limit is None:
        submission = folder / f"submission{benchmark.suffix}"
        benchmark.submission(given, root, submission)
        result["submission"] = str(submission)
    if benchmark.scored != "server":
        # By position, as some published scorers have it, a missing answer would move all others.
        strict = options.strict or len(given) < len(job.questions)
        scores = benchmark.score(given, root, strict=strict, reviews=folder / REVIEWS_NAME)
        result |= {"strict": strict, **dataclasses.asdict(scores if options.limit is None else _of_few(scores, job))}
    result["made_with"] = describe(
        benchmark, root, answers.settings, job.asked[0], batch_size=options.batch_size, ranks=world_size()
    )
    write_json(folder / SCORES_NAME, result)


def _of_few(scores: Scores, job: Job) -> Scores:
    """Restricts scores to the questions that were asked: their mean, in percent, for a look."""
    keys = {key for question in job.asked for key in (item_key(question.id), item_key(*question.key))}
    items = {key: value for key, value in scores.items.items() if key in keys}
    metrics = {"mean_of_items": 100 * mean(items.values())}
    rule = f"The mean over the {len(items)} questions that were asked. {scores.rule}"
    return Scores(headline="mean_of_items", metrics=metrics, items=items, rule=rule)


def _claim(options: argparse.Namespace) -> None:
    """Makes the output folder this model's own, or sees that it is.

    Raises:
        UserError: It holds another model's results.
    """
    path = options.output / SUMMARY_NAME
    model = {"path": absolute(options.model_path), "files": checkpoint_digest(options.model_path)}
    if path.is_file() and read_json(path).get("model") != model:
        raise UserError(f"{path} tells of another model; name another --output.")
    write_json(path, {"model": model, "benchmarks": {}, "not_run": {}})


def _summarise(options: argparse.Namespace, reasons: dict[str, str]) -> None:
    """Writes the headline of every benchmark that the output folder holds, and what did not run this time."""
    path = options.output / SUMMARY_NAME
    found = {}
    for scores in sorted(options.output.glob(f"*/{SCORES_NAME}")):
        result = read_json(scores)
        headline = result.get("headline")
        found[result["benchmark"]] = {
            "title": result["title"],
            "scored": result["scored"],
            "headline": headline,
            "value": result["metrics"][headline] if headline else None,
            "limit": result["limit"],
            "failures": result["failures"],
            "submission": result.get("submission"),
        }
    write_json(path, {**read_json(path), "benchmarks": found, "not_run": reasons})


def _report(output: Path) -> None:
    summary = read_json(output / SUMMARY_NAME)
    for name, entry in summary["benchmarks"].items():
        told = f"{entry['headline']} {entry['value']:.2f}" if entry["headline"] else f"to send: {entry['submission']}"
        marks = [f"only the first {entry['limit']} questions"] if entry["limit"] else []
        marks += [f"{entry['failures']} without an answer"] if entry["failures"] else []
        out(f"{name:<16} {told}" + (f" ({', '.join(marks)})" if marks else ""))
    for name, reason in summary["not_run"].items():
        out(f"{name:<16} did not run: {reason}")
    out(f"all of it in {output}")


@contextmanager
def _joined() -> Iterator[None]:
    """Joins the ranks in a group that waits for each other without a GPU, for as long as a benchmark may take."""
    if world_size() == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()
