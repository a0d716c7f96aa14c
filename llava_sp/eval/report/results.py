"""What `python -m llava_sp.eval` left in an output folder, read back."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_sp.eval.answers import Answer, Answers, read_answers
from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.base import item_key
from llava_sp.eval.suite import ANSWERS_NAME, SCORES_NAME, SUMMARY_NAME
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json


@dataclass(frozen=True)
class Result:
    """How a model did on one benchmark.

    Attributes:
        fields: What `scores.json` holds.
        answers: The answers; empty if they were not scored here.
    """

    fields: dict[str, Any]
    answers: Answers

    @property
    def name(self) -> str:
        """What commands call the benchmark."""
        return self.fields["benchmark"]

    @property
    def title(self) -> str:
        """What tables call the benchmark."""
        return self.fields["title"]

    @property
    def headline(self) -> str | None:
        """The metric that tables quote; `None` if a server scores it."""
        return self.fields.get("headline")

    @property
    def value(self) -> float | None:
        """The headline's figure."""
        return self.metrics[self.headline] if self.headline else None

    @property
    def metrics(self) -> dict[str, float]:
        """All figures."""
        return self.fields.get("metrics", {})

    @property
    def categories(self) -> dict[str, float]:
        """The figure of each category."""
        return self.fields.get("categories", {})

    @property
    def items(self) -> dict[str, float]:
        """The score of each question."""
        return self.fields.get("items", {})

    @property
    def remarks(self) -> dict[str, Any]:
        """What sets these scores apart, counts of what was odd about the answers, and what else was told of them."""
        marks = {"not like a whole run": ", ".join(self.marks)} if self.marks else {}
        return marks | self.fields.get("notes", {}) | self.fields.get("details", {})

    @property
    def made_with(self) -> dict[str, Any]:
        """What the answers were made with."""
        return self.fields.get("made_with", {})

    @property
    def marks(self) -> list[str]:
        """What sets the figures apart from those of a whole and flawless run."""
        limit, failures = self.fields.get("limit"), self.fields.get("failures")
        marks = [f"only the first {limit} questions"] if limit else []
        marks += [f"{failures} without an answer"] if failures else []
        return marks + (["strict"] if self.fields.get("strict") else [])

    @cached_property
    def answer_to(self) -> dict[str, Answer]:
        """The answer behind each score; of several to a question the first."""
        found: dict[str, Answer] = {}
        for answer in self.answers:
            for key in (item_key(answer.question_id), item_key(*answer.key)):
                if key in self.items:
                    found.setdefault(key, answer)
        return found


@dataclass(frozen=True)
class Output:
    """An output folder.

    Attributes:
        path: The folder.
        model: The checkpoint's path.
        results: Its results by benchmark, in the order of the list of benchmarks.
        problems: What is missing or broken, a sentence each.
    """

    path: Path
    model: str
    results: dict[str, Result] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_output(path: Path) -> Output:
    """Reads an output folder; what cannot be read is noted in its problems.

    Raises:
        UserError: It is no output folder, or holds no result.
    """
    if not (path / SUMMARY_NAME).is_file():
        raise UserError(f"{path} holds no {SUMMARY_NAME}; name an --output of python -m llava_sp.eval.")
    summary = read_json(path / SUMMARY_NAME)
    try:
        output = Output(path, str(summary["model"]["path"]))
        output.problems.extend(f"{name} did not run: {reason}" for name, reason in summary["not_run"].items())
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path / SUMMARY_NAME} is not a summary of python -m llava_sp.eval.") from None
    found = []
    for file in sorted(path.glob(f"*/{SCORES_NAME}")):
        try:
            found.append(_read_result(file, output.problems))
        except UserError as error:
            output.problems.append(str(error))
    places = {name: place for place, name in enumerate(BENCHMARKS)}
    for result in sorted(found, key=lambda result: (places.get(result.name, len(places)), result.name)):
        output.results[result.name] = result
    if not found:
        raise UserError(" ".join([f"{path} holds no benchmark's {SCORES_NAME}.", *output.problems]))
    return output


def _read_result(path: Path, problems: list[str]) -> Result:
    """Reads a benchmark's scores, and its answers if there are scores; without answers there is a problem the more."""
    fields = read_json(path)
    if not _is_whole(fields):
        raise UserError(f"{path} is not the {SCORES_NAME} of a benchmark; is it of python -m llava_sp.eval?")
    answers: Answers = []
    if fields.get("items"):
        try:
            answers = read_answers(path.with_name(ANSWERS_NAME))
        except UserError as error:
            problems.append(str(error))
    return Result(fields, answers)


def _is_whole(fields: Any) -> bool:
    """Tells whether the values that the report uses are there and of their types."""
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("benchmark", "title")):
        return False
    figures = [fields.get(name, {}) for name in ("metrics", "categories", "items")]
    if not all(isinstance(group, dict) and all(map(_is_number, group.values())) for group in figures):
        return False
    headline = fields.get("headline")
    if not all(isinstance(fields.get(name, {}), dict) for name in ("notes", "details", "made_with")):
        return False
    return headline is None or (headline in figures[0] and isinstance(fields.get("rule"), str))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
