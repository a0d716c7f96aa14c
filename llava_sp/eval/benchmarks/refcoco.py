"""RefCOCO, RefCOCO+ (arXiv 1608.00272) and RefCOCOg (arXiv 1511.02283): where is what a phrase describes?

LLaVA has no script for them; what it learns from has boxes `[x1, y1, x2, y2]` between 0 and 1, of the image padded to a
square. The data are lines of JSON as in Qwen-VL's evaluation: image, sent, bbox (corners in pixels), width, height.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_lines

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."
_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")

Box = Sequence[float]
"""Left, top, right, bottom."""


class RefCoco(Benchmark):
    """One of the three data sets.

    Args:
        name: What commands call it; the beginning of its files' names.
        title: What tables call it.
        splits: Its splits; the first one is the headline.
    """

    folder = "refcoco"
    images = "train2014"

    def __init__(self, name: str, title: str, splits: tuple[str, ...]) -> None:
        self.name = name
        self.title = title
        self.splits = splits
        source = "Qwen-VL's evaluation data (its eval_mm/EVALUATION.md)"
        self.files = (
            *(DataFile(f"{name}_{split}.jsonl", source, f"phrases and boxes of {split}") for split in splits),
            DataFile(self.images, "images.cocodataset.org/zips/train2014.zip", "the images"),
        )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; an id is the split and the number of the line."""
        return [
            Question(key, PROMPT.format(row["sent"].rstrip(".")), PurePosixPath(row["image"]).name)
            for key, row in self._rows(root).items()
        ]

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`."""
        rows = self._rows(root)
        found, notes = self.align(answers, rows, strict=strict)
        padded: dict[str, float] = {}
        stretched: dict[str, float] = {}
        for key, row in rows.items():
            box = box_in(found[key].text) if key in found else None
            notes["unparsable"] += key in found and box is None
            for rights, frame in ((padded, pad), (stretched, stretch)):
                truth = frame(row["bbox"], row["width"], row["height"])
                rights[item_key(key)] = float(box is not None and overlap(box, truth) > 0.5)
        by_split = {
            split: 100 * mean(right for key, right in padded.items() if key.startswith(f"{split}/"))
            for split in self.splits
        }
        return Scores(
            headline=self.splits[0],
            metrics=by_split | {"all": 100 * mean(padded.values()), "all_stretched": 100 * mean(stretched.values())},
            categories=by_split,
            items=padded,
            rule="Intersection over union above 0.5 with the box of the image padded to a square, as in LLaVA-1.5's "
            "training data (all_stretched: each side by its own length); a missing answer is wrong.",
            notes=dict(+notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        rows = self._rows(root)
        boxes = {key: pad(row["bbox"], row["width"], row["height"]) for key, row in rows.items()}
        return {
            item_key(key): Expected(f"[{', '.join(f'{side:.2f}' for side in box)}]", key.partition("/")[0])
            for key, box in boxes.items()
        }

    def _rows(self, root: Path) -> dict[str, dict[str, Any]]:
        rows = {}
        for split in self.splits:
            path = self.path(root, f"{self.name}_{split}.jsonl")
            for number, row in enumerate(read_json_lines(path, ("image", "sent", "bbox", "width", "height")), start=1):
                numbers = [*row["bbox"], row["width"], row["height"]] if isinstance(row["bbox"], list) else []
                if len(numbers) != 6 or not all(type(n) in (int, float) for n in numbers) or min(numbers[4:]) <= 0:
                    raise UserError(f"{path}, line {number}: bbox must be four numbers, width and height above 0.")
                rows[f"{split}/{number}"] = row
        return rows


def box_in(text: str) -> Box | None:
    """Returns the first box in an answer, or `None`."""
    found = _BOX.search(text)
    return [float(number) for number in found.groups()] if found else None


def pad(box: Box, width: float, height: float) -> Box:
    """Takes a box in pixels to parts of the square that the image is padded to."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return [(value + shift) / side for value, shift in zip(box, (left, top, left, top), strict=True)]


def stretch(box: Box, width: float, height: float) -> Box:
    """Takes a box in pixels to parts of the image's width and height."""
    return [value / side for value, side in zip(box, (width, height, width, height), strict=True)]


def overlap(one: Box, other: Box) -> float:
    """Returns the intersection over union of two boxes; 0 for a box without inside."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
