"""Is one model better than another, or is it noise? Paired bootstrap over the questions that both were asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_sp.eval.benchmarks.base import mean
from llava_sp.eval.report.results import Result
from llava_sp.utils.errors import UserError

RESAMPLES = 10_000
LEVEL = 0.95
FEW = 30
"""Fewer questions than this are too few for a bootstrap to be relied on."""


@dataclass(frozen=True)
class Comparison:
    """What sets two models apart on a benchmark: the first one's figures minus the other's.

    Attributes:
        title: What tables call the benchmark.
        headline: Difference of the published figures; `None` if they are not the same figure.
        mean: Difference of the mean scores of the questions that both have; in percent, or in a judge's grades.
        low: Lower end of its interval.
        high: Upper end.
        questions: Number of questions that both have.
        notes: What else a reader should know, a sentence each.
    """

    title: str
    headline: float | None
    mean: float
    low: float
    high: float
    questions: int
    notes: list[str]

    def verdict(self, first: str, other: str) -> str:
        """Says in words which is better, if either."""
        if self.low <= 0 <= self.high:
            return "no difference told from noise"
        return f"{first if self.low > 0 else other} is better"


def compare(one: Result, other: Result) -> Comparison:
    """Compares two models' results on a benchmark.

    Raises:
        UserError: They have no question in common.
    """
    common = [key for key in one.items if key in other.items]
    if not common:
        raise UserError(f"{one.title}: the two have no scored question in common.")
    scores = np.array([[side.items[key] for key in common] for side in (one, other)], dtype=np.float64)
    scale = 100 if scores.min() >= 0 and scores.max() <= 1 else 1
    # Several prompts about one image may share a question's id; they are drawn together, for they are not independent.
    answered = {**other.answer_to, **one.answer_to}
    ids = [str(answered[key].question_id) if key in answered else key for key in common]
    difference, low, high = paired_bootstrap(scale * (scores[0] - scores[1]), ids)
    headline = None
    if one.headline == other.headline and one.value is not None and other.value is not None:
        headline = one.value - other.value
    questions = len(set(ids))
    notes = _notes(one, other, common, questions=questions, scale=scale)
    return Comparison(one.title, headline, difference, low, high, questions, notes)


def paired_bootstrap(
    differences: NDArray[np.float64], questions: Sequence[str], *, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the mean of differences and the percentile interval of it when questions are drawn with replacement.

    Args:
        differences: Score of the one minus score of the other, of shape (N,).
        questions: The question that each belongs to; those of one question are drawn together.
        seed: Seed of the draws.
    """
    _, places = np.unique(questions, return_inverse=True)
    sums, sizes = np.bincount(places, weights=differences), np.bincount(places)
    # Questions that are alike need no telling apart: drawing N of them is one multinomial draw over the kinds.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=RESAMPLES)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(differences.mean()), float(low), float(high)


def _is_mean_of_items(result: Result, scale: int) -> bool:
    return result.value is not None and abs(scale * mean(result.items.values()) - result.value) < 0.005


def _notes(one: Result, other: Result, common: list[str], *, questions: int, scale: int) -> list[str]:
    notes = []
    if one.headline != other.headline:
        notes.append(f"The figures are {one.headline} and {other.headline}, which cannot be compared.")
    elif not all(_is_mean_of_items(side, scale) for side in (one, other)):
        notes.append(f"{one.headline} is not the mean of the questions' scores; the interval is of that mean.")
    if scale == 1:
        notes.append("The mean is of a judge's grades, not in percent.")
    if questions < FEW:
        notes.append(f"{questions} questions are too few to rely on the interval.")
    apart = len(one.items) + len(other.items) - 2 * len(common)
    if apart:
        notes.append(f"{apart} scores of questions that only one of them has are left out.")
    for what, name in (("rules", "rule"), ("judges or prompts", "details")):
        if one.fields.get(name) != other.fields.get(name):
            notes.append(f"Scored by different {what}.")
    if one.made_with.get("data_sha256") != other.made_with.get("data_sha256"):
        notes.append("Their data files differ.")
    return notes
