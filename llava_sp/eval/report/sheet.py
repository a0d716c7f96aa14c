"""Right and wrong answers to look at: which ones, and with which image."""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava_sp.data.problems import SampleError
from llava_sp.eval.benchmarks import get_benchmark
from llava_sp.eval.benchmarks.base import Benchmark, Expected
from llava_sp.eval.questions import Question, open_image
from llava_sp.eval.report.results import Result
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

SIDE = 224
QUALITY = 70


@dataclass(frozen=True)
class Sample:
    """An answer to look at.

    Attributes:
        question: The question as it was asked.
        answer: What the model said.
        expected: What is right, and the category; both may be empty.
        score: Its score.
        right: Whether it has at least half of a full score.
        image: The image as a small JPEG in a data URL; `None` if there is none.
        without: Why there is no image.
    """

    question: str
    answer: str
    expected: Expected
    score: float
    right: bool
    image: str | None
    without: str


def samples(result: Result, count: int, data_root: Path | None) -> tuple[list[Sample], list[str]]:
    """Chooses answers of a benchmark, always the same ones, as many of each category as can be.

    Args:
        result: The benchmark's result.
        count: At most so many right answers, and so many wrong ones.
        data_root: The folder of all benchmarks' data, if not where it was when the answers were made.

    Returns:
        The answers by category, in each the wrong ones first; and what is missing to show them whole.
    """
    if not count or not result.answer_to:
        return [], []
    questions, expected, problems = _data(result, data_root)
    half = max(1.0, *result.items.values()) / 2
    chosen = []
    for right in (False, True):
        keys = [key for key in result.answer_to if (result.items[key] >= half) == right]
        chosen += [(key, right) for key in _choose(keys, expected, count)]
    shown = []
    for key, right in chosen:
        answer = result.answer_to[key]
        question, folder = questions.get(answer.key, (None, Path()))
        image, without = _picture(question, folder)
        about = expected.get(key, Expected(""))
        shown.append(Sample(answer.prompt, answer.text, about, result.items[key], right, image, without))
    return sorted(shown, key=lambda sample: sample.expected.category), problems


def _data(
    result: Result, data_root: Path | None
) -> tuple[dict[tuple[str | int, str], tuple[Question, Path]], dict[str, Expected], list[str]]:
    """Reads a benchmark's questions, with the folder of their images, and what is right; notes what is not there."""
    problems: list[str] = []
    questions, expected = {}, {}
    try:
        benchmark = get_benchmark(result.name)
        root = _root(result, benchmark, data_root)
        asked = benchmark.questions(root)
        questions = {question.key: (question, root / benchmark.images) for question in asked}
        expected = benchmark.expected(root)
    except UserError as error:
        problems.append(f"{error} The answers to {result.title} are shown without what is not there.")
        logger.warning("%s", problems[-1])
    return questions, expected, problems


def _root(result: Result, benchmark: Benchmark, data_root: Path | None) -> Path:
    """Returns the benchmark's folder."""
    if data_root is not None:
        return data_root / benchmark.folder
    recorded = result.made_with.get("data_folder")
    if not isinstance(recorded, str):
        raise UserError(f"{result.title}: its scores do not say where its data are; name --data-root.")
    return Path(recorded)


def _choose(keys: Iterable[str], expected: dict[str, Expected], count: int) -> list[str]:
    """Chooses by a hash of the key, so that two models' sheets show the same questions where they can."""
    taken: Counter[str] = Counter()
    ranked = []
    for key in sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest()):
        category = expected[key].category if key in expected else ""
        ranked.append((taken[category], category, key))
        taken[category] += 1
    return [key for _, _, key in sorted(ranked)[:count]]


def _picture(question: Question | None, folder: Path) -> tuple[str | None, str]:
    """Returns a question's image as a data URL, or why there is none."""
    if question is None:
        return None, "The question is not in the data; its image is unknown."
    try:
        image = open_image(question, folder)
    except SampleError as error:
        return None, str(error)
    if image is None:
        return None, "A question without an image."
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}", ""
