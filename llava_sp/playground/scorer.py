"""Scores a model's answers about the tiny world, beside chance and the commonest answer."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from llava_sp.playground.language import TASKS
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_lines
from llava_sp.utils.matching import is_right


@dataclass(frozen=True)
class TaskScore:
    """How a task went; all shares are between 0 and 1.

    Attributes:
        task: One of `TASKS`, or "mean" (over the tasks).
        count: Number of questions.
        accuracy: Share of right answers.
        chance: What guessing evenly among the answers of each question's form would give.
        commonest: What giving each form's commonest answer would give: it needs no image.
    """

    task: str
    count: int
    accuracy: float
    chance: float
    commonest: float

    @property
    def margin(self) -> float:
        """Half the width of the accuracy's 95% interval (Wilson's, which is not zero where all answers are right)."""
        z = 1.96
        spread = self.accuracy * (1 - self.accuracy) / self.count + (z / (2 * self.count)) ** 2
        return z * math.sqrt(spread) / (1 + z**2 / self.count)


def score_answers(answers_file: str | Path, annotations_file: str | Path) -> list[TaskScore]:
    """Scores an answers file of `llava_sp.eval.model_vqa`, matched by question id.

    Args:
        answers_file: JSONL with "question_id" and "text".
        annotations_file: The world's annotations.jsonl.

    Returns:
        One score for each task that has questions, and their mean.

    Raises:
        UserError: A file is missing or malformed, or a question has no answer.
    """
    annotations = read_json_lines(annotations_file, ("question_id", "task", "form", "answer"))
    answers = {line["question_id"]: line["text"] for line in read_json_lines(answers_file, ("question_id", "text"))}
    missing = [line["question_id"] for line in annotations if line["question_id"] not in answers]
    if missing:
        raise UserError(f"{answers_file} lacks {len(missing)} of {len(annotations)} answers, the first {missing[0]}.")

    expected: dict[str, Counter[str]] = defaultdict(Counter)
    for line in annotations:
        expected[line["form"]][line["answer"]] += 1
    scores = []
    for task in TASKS:
        lines = [line for line in annotations if line["task"] == task]
        if lines:
            right = sum(is_right(answers[line["question_id"]], line["answer"]) for line in lines)
            forms = {line["form"] for line in lines}
            chance = sum(expected[form].total() / len(expected[form]) for form in forms)
            commonest = sum(max(expected[form].values()) for form in forms)
            scores.append(TaskScore(task, len(lines), right / len(lines), chance / len(lines), commonest / len(lines)))
    return [*scores, _mean(scores)]


def _mean(scores: list[TaskScore]) -> TaskScore:
    def mean(name: str) -> float:
        return sum(getattr(score, name) for score in scores) / len(scores)

    return TaskScore("mean", sum(s.count for s in scores), mean("accuracy"), mean("chance"), mean("commonest"))
