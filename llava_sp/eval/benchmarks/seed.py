"""SEED-Bench (arXiv 2307.16125), the questions about images."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json_lines

TRUTHS = "SEED-Bench.json"
IMAGES = "SEED-Bench-image"
VIDEO_FRAMES = "SEED-Bench-video-image"
SOURCE = "github.com/AILab-CVC/SEED-Bench, DATASET.md"


class SeedBench(Benchmark):
    """SEED-Bench, scored as by LLaVA's `convert_seed_for_submission`."""

    name = "seed"
    title = "SEED-Bench (image)"
    folder = "seed_bench"
    question_file = "llava-seed-bench.jsonl"
    images = "."
    suffix = ".jsonl"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(TRUTHS, SOURCE, "the questions with their answers"),
        DataFile(IMAGES, SOURCE, "the images"),
    )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; those about frames of videos are left out."""
        return [
            question for question in super().questions(root) if not str(question.image).startswith(f"{VIDEO_FRAMES}/")
        ]

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; videos count where there are answers to them."""
        rows, names = self._truths(root)
        found, notes = self.align(answers, [row["question_id"] for row in rows], strict=strict)
        if not any(row["data_type"] == "video" and str(row["question_id"]) in found for row in rows):
            rows = [row for row in rows if row["data_type"] == "image"]
        items: dict[str, float] = {}
        by_kind: dict[str, list[float]] = defaultdict(list)
        by_media: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            answer = found.get(str(row["question_id"]))
            right = float(answer is not None and answer.text == row["answer"])
            items[item_key(row["question_id"])] = right
            by_kind[names.get(row["question_type_id"], str(row["question_type_id"]))].append(right)
            by_media[row["data_type"]].append(right)
        notes["missing"] = len(rows) - sum(str(row["question_id"]) in found for row in rows)
        notes["unparsable"] = sum(answer.text not in ("A", "B", "C", "D") for answer in answers)
        return Scores(
            headline="image",
            metrics={media: mean(scores) * 100 for media, scores in sorted(by_media.items())}
            | {"all": mean(items.values()) * 100},
            categories={kind: mean(scores) * 100 for kind, scores in by_kind.items()},
            items=items,
            rule="Exactly the letter; a missing answer is wrong.",
            notes=dict(+notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        rows, names = self._truths(root)
        return {
            item_key(row["question_id"]): Expected(row["answer"], names.get(row["question_type_id"], ""))
            for row in rows
        }

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes the leaderboard's lines `{"question_id", "prediction"}`, of videos too if there are answers to any."""
        rows, _ = self._truths(root)
        found, _ = self.align(answers, [row["question_id"] for row in rows])
        given = {key: answer.text for key, answer in found.items()}
        media = {row["data_type"] for row in rows if str(row["question_id"]) in given}
        ids = [row["question_id"] for row in rows if row["data_type"] in media]
        write_json_lines(output, ({"question_id": key, "prediction": given.get(str(key), "")} for key in ids))

    def _truths(self, root: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """Returns the questions, and the names of their types by number."""
        path = self.path(root, TRUTHS)
        try:
            data = read_json(path)
            names = {number: name for name, number in data["question_type"].items()}
            rows = data["questions"]
            if {"question_id", "data_type", "question_type_id", "answer"} <= set.intersection(*map(set, rows)):
                return rows, names
        except (TypeError, KeyError, AttributeError):
            pass
        raise UserError(f"{path} does not hold SEED-Bench's questions with answers.")
