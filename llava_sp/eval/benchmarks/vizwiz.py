"""VizWiz (arXiv 1802.08218): the test questions, scored by EvalAI, and the validation questions, scored here."""

import json
from pathlib import Path
from typing import Any

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, NOT_WRITTEN, SHORT_PROMPT, Benchmark, DataFile, Expected, Scores
from llava_sp.eval.benchmarks.vqa_accuracy import Truth, expected_by, normalise, score_vqa
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, read_json_lines, write_text

UNANSWERABLE_PROMPT = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(Benchmark):
    """VizWiz test."""

    name = "vizwiz"
    title = "VizWiz test"
    folder = "vizwiz"
    question_file = "llava_test.jsonl"
    images = "test"
    scored = "server"
    suffix = ".json"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(images, "vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip", "the images"),
    )

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes EvalAI's `[{"image", "answer"}]`; every question must have an answer."""
        rows = read_json_lines(self.path(root, self.question_file), ("question_id", "image"))
        found, _ = self.align(answers, [row["question_id"] for row in rows])
        self.need_all((row["question_id"] for row in rows), found, NOT_WRITTEN)
        entries = [{"image": row["image"], "answer": normalise(found[str(row["question_id"])].text)} for row in rows]
        write_text(output, json.dumps(entries))


class VizWizVal(Benchmark):
    """VizWiz val, with the official file."""

    name = "vizwiz_val"
    title = "VizWiz val"
    folder = "vizwiz"
    question_file = "val.json"
    images = "val"
    files = (
        DataFile(question_file, "vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip", "questions, answers"),
        DataFile(images, "vizwiz.cs.colorado.edu/VizWiz_final/images/val.zip", "the images"),
    )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; worded as LLaVA words the test questions. The image is the id."""
        return [
            Question(row["image"], f"{row['question']}\n{UNANSWERABLE_PROMPT}\n{SHORT_PROMPT}", row["image"])
            for row in self._rows(root)
        ]

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the categories are the types of answers."""
        return score_vqa(self, answers, self._truths(root), strict=strict)

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        return expected_by(self._truths(root))

    def _truths(self, root: Path) -> list[Truth]:
        return [
            Truth(row["image"], row["answer_type"], [person["answer"] for person in row["answers"]])
            for row in self._rows(root)
        ]

    def _rows(self, root: Path) -> list[dict[str, Any]]:
        path = self.path(root, self.question_file)
        rows = read_json(path)
        keys = {"image", "question", "answers", "answer_type"}
        if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
            raise UserError(f"{path} does not hold VizWiz's questions and answers.")
        return rows
