"""VQAv2 (arXiv 1612.00837): the test questions, scored by EvalAI, and the validation questions, scored here."""

import json
from pathlib import Path

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, SHORT_PROMPT, Benchmark, DataFile, Expected, Scores
from llava_sp.eval.benchmarks.vqa_accuracy import Truth, expected_by, normalise, score_vqa
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, read_json_lines, write_text
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

ALL_TEST = "llava_vqav2_mscoco_test2015.jsonl"
VAL_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
VAL_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


class Vqav2(Benchmark):
    """VQAv2 test-dev."""

    name = "vqav2"
    title = "VQAv2 test-dev"
    folder = "vqav2"
    question_file = "llava_vqav2_mscoco_test-dev2015.jsonl"
    images = "test2015"
    scored = "server"
    suffix = ".json"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(ALL_TEST, EVAL_ZIP, "all test questions; the server expects an answer to each"),
        DataFile(images, "images.cocodataset.org/zips/test2015.zip", "the images"),
    )

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes EvalAI's `[{"question_id", "answer"}]`: every test question, with "" where there is no answer."""
        ids = [row["question_id"] for row in read_json_lines(self.path(root, ALL_TEST), ("question_id",))]
        found, notes = self.align(answers, ids)
        given = {key: normalise(answer.text) for key, answer in found.items()}
        write_text(output, json.dumps([{"question_id": key, "answer": given.get(str(key), "")} for key in ids]))
        logger.info("%s: %d of %d test questions are answered.", output, len(ids) - notes["missing"], len(ids))


class Vqav2Val(Benchmark):
    """VQAv2 val, with the official files."""

    name = "vqav2_val"
    title = "VQAv2 val"
    folder = "vqav2"
    question_file = VAL_QUESTIONS
    images = "val2014"
    files = (
        DataFile(VAL_QUESTIONS, "visualqa.org/download.html", "the questions"),
        DataFile(VAL_ANNOTATIONS, "visualqa.org/download.html", "people's answers"),
        DataFile(images, "images.cocodataset.org/zips/val2014.zip", "the images"),
    )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; worded as LLaVA words the test questions."""
        path = self.path(root, VAL_QUESTIONS)
        try:
            return [
                Question(
                    row["question_id"],
                    f"{row['question']}\n{SHORT_PROMPT}",
                    f"COCO_val2014_{row['image_id']:012d}.jpg",
                )
                for row in read_json(path)["questions"]
            ]
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{path} does not hold VQAv2's questions.") from None

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the categories are the types of answers."""
        return score_vqa(self, answers, self._truths(root), strict=strict)

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        return expected_by(self._truths(root))

    def _truths(self, root: Path) -> list[Truth]:
        path = self.path(root, VAL_ANNOTATIONS)
        try:
            return [
                Truth(row["question_id"], row["answer_type"], [person["answer"] for person in row["answers"]])
                for row in read_json(path)["annotations"]
            ]
        except (TypeError, KeyError):
            raise UserError(f"{path} does not hold VQAv2's annotations.") from None
