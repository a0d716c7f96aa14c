"""ScienceQA (arXiv 2209.09513), the test questions, with and without an image."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, MODEL_VQA, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.questions import Question
from llava_sp.eval.tables import read_science
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json

LETTERS = ("A", "B", "C", "D", "E")
SPLIT = "test"
SOURCE = "github.com/lupantech/ScienceQA, data/scienceqa"

_IN_A_SENTENCE = re.compile("The answer is ([A-Z]).")


class ScienceQa(Benchmark):
    """ScienceQA, scored as by LLaVA's `eval_science_qa`."""

    name = "scienceqa"
    title = "ScienceQA"
    folder = "scienceqa"
    question_file = "llava_test_CQM-A.json"
    images = "images/test"
    settings = MODEL_VQA
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile("problems.json", SOURCE, "the questions with their answers"),
        DataFile("pid_splits.json", SOURCE, "which questions are the test"),
        DataFile(images, SOURCE, "the images"),
    )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        return read_science(self.path(root, self.question_file), single_pred_prompt=True)

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the accuracy of the questions with an image."""
        problems = self._problems(root)
        found, notes = self.align(answers, problems, strict=strict)
        if not strict and answers and not any(answer.prompt for answer in answers):
            raise UserError(
                "These answers have no 'prompt', by which the published scorer knows which question has an image. "
                "Score them with --strict, which looks that up."
            )
        items: dict[str, float] = {}
        with_image: list[float] = []
        by_subject: dict[str, list[float]] = defaultdict(list)
        for key, problem in problems.items():
            answer = found.get(key)
            letter = letter_of(answer.text) if answer else None
            notes["unparsable"] += answer is not None and letter is None
            right = float(letter in LETTERS[: len(problem["choices"])] and LETTERS[problem["answer"]] == letter)
            items[item_key(key)] = right
            by_subject[problem.get("subject", "all")].append(right)
            # LLaVA goes by the prompt, and so has no image where there is no answer.
            if (problem.get("image") is not None) if strict else (answer is not None and IMAGE_TOKEN in answer.prompt):
                with_image.append(right)
        image = "those of the problems file" if strict else "told by their prompts, so a missing answer has none"
        return Scores(
            headline="image_accuracy",
            metrics={"image_accuracy": mean(with_image) * 100, "accuracy": mean(items.values()) * 100},
            categories={subject: mean(scores) * 100 for subject, scores in sorted(by_subject.items())},
            items=items,
            rule=f"A letter, 'A. ...', or one 'The answer is A.'; all else is wrong. Questions with an image: {image}.",
            notes=dict(+notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        return {
            item_key(key): Expected(
                f"{LETTERS[problem['answer']]}. {problem['choices'][problem['answer']]}", problem.get("subject", "all")
            )
            for key, problem in self._problems(root).items()
        }

    def _problems(self, root: Path) -> dict[str, dict[str, Any]]:
        problems_path, splits_path = self.path(root, "problems.json"), self.path(root, "pid_splits.json")
        try:
            problems, splits = read_json(problems_path), read_json(splits_path)
            chosen = {key: problems[key] for key in splits[SPLIT]}
            if all(LETTERS[problem["answer"]] and problem["choices"] for problem in chosen.values()):
                return chosen
        except (TypeError, KeyError, IndexError):
            pass
        raise UserError(f"{problems_path} and {splits_path} do not hold ScienceQA's problems and its {SPLIT!r} split.")


def letter_of(text: str) -> str | None:
    """Finds the letter that an answer chooses, as LLaVA does; `None` if it finds none."""
    if text in LETTERS:
        return text
    if text[:1] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _IN_A_SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None
