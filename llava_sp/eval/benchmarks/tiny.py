"""The tiny world that the project brings along: scenes of handwritten digits and coloured shapes."""

from collections import defaultdict
from pathlib import Path

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.inference import GenerationSettings
from llava_sp.utils.files import read_json_lines
from llava_sp.utils.matching import is_right

SOURCE = "python -m llava_sp.playground build --output FOLDER"


class Tiny(Benchmark):
    """The tiny world's held-out questions."""

    name = "tiny"
    title = "tiny world"
    folder = "tiny"
    question_file = "questions.jsonl"
    images = "images"
    settings = GenerationSettings(temperature=0, max_new_tokens=16)
    files = (
        DataFile(question_file, SOURCE, "the questions"),
        DataFile("annotations.jsonl", SOURCE, "the answers"),
        DataFile(images, SOURCE, "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the mean of the tasks."""
        rows = read_json_lines(self.path(root, "annotations.jsonl"), ("question_id", "task", "answer"))
        found, notes = self.align(answers, [row["question_id"] for row in rows], strict=strict)
        if not strict:
            self.need_all((row["question_id"] for row in rows), found, "--strict counts them as wrong.")
        items: dict[str, float] = {}
        by_task: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            answer = found.get(str(row["question_id"]))
            right = float(answer is not None and is_right(answer.text, row["answer"]))
            items[item_key(row["question_id"])] = right
            by_task[row["task"]].append(right)
        tasks = {task: 100 * mean(scores) for task, scores in by_task.items()}
        return Scores(
            headline="mean",
            metrics={"mean": mean(tasks.values())},
            categories=tasks,
            items=items,
            rule="Equal but for case, outer blanks and a final full stop; mean of the tasks.",
            notes=dict(notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        rows = read_json_lines(self.path(root, "annotations.jsonl"), ("question_id", "task", "answer"))
        return {item_key(row["question_id"]): Expected(str(row["answer"]), row["task"]) for row in rows}
