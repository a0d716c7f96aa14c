"""MMVP (arXiv 2401.06209): pairs of images that CLIP takes for alike, with one question and two answers."""

import csv
from pathlib import Path

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.benchmarks.base import Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.inference import GenerationSettings
from llava_sp.eval.questions import Question
from llava_sp.eval.tables import LETTER_PROMPT
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_json_lines

SWAPPED = {99: "b", 100: "a", 279: "b", 280: "a"}
"""Rows whose published keys are the wrong way round, with the right ones (github.com/tsb0601/MMVP, issue 30)."""


class Mmvp(Benchmark):
    """MMVP, asked and scored by rule as in Cambrian's `mmvp_eval` and `mmvp_test`."""

    name = "mmvp"
    title = "MMVP"
    folder = "mmvp"
    question_file = "Questions.csv"
    images = "MMVP Images"
    settings = GenerationSettings(temperature=0, max_new_tokens=512)
    suffix = ".jsonl"
    files = (
        DataFile(question_file, "huggingface.co/datasets/MMVP/MMVP", "questions and answers"),
        DataFile(images, "huggingface.co/datasets/MMVP/MMVP", "the images"),
    )

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        questions = []
        for index, (question, options, _) in self._rows(root).items():
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip("AB", options, strict=True))
            questions.append(Question(index, f"{question} Options:\n{listed}\n{LETTER_PROMPT}", f"{index}.jpg"))
        return questions

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the share of pairs with the published key."""
        rows = self._rows(root)
        found, notes = self.align(answers, rows, strict=strict)
        if strict:
            listed = [(index, found.get(str(index))) for index in rows]
        else:
            indexes = {str(index): index for index in rows}
            listed = [(indexes[str(a.question_id)], a) for a in answers if str(a.question_id) in indexes]
        metrics: dict[str, float] = {}
        items: dict[str, float] = {}
        for suffix, swapped in (("_corrected", SWAPPED), ("", {})):
            rights = [_is_right(answer, rows[index][1], swapped.get(index, rows[index][2])) for index, answer in listed]
            pairs = [rights[start : start + 2] for start in range(0, len(rights), 2)]
            metrics[f"single{suffix}"] = 100.0 * mean(rights)
            metrics[f"pairs{suffix}"] = 100.0 * sum(len(pair) for pair in pairs if all(pair)) / len(rights)
            items = {item_key(index): float(right) for (index, _), right in zip(listed, rights, strict=True)}
        order = "pairs by row; a missing answer is wrong" if strict else "pairs by position, as there"
        return Scores(
            headline="pairs",
            metrics=dict(reversed(metrics.items())),
            items=items,
            rule=f"The letter or the option's words, as in Cambrian's mmvp_test; {order}. Also with the keys of rows "
            f"{', '.join(map(str, SWAPPED))} the right way round (_corrected).",
            notes=dict(notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        return {
            item_key(index): Expected(f"{key.upper()}. {options['ab'.index(key)]}")
            for index, (_, options, key) in self._rows(root).items()
        }

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes the lines that MMVP's own grader takes, a language model: question, key and response."""
        rows = self._rows(root)
        found, _ = self.align(answers, rows)
        lines = (
            {"question_id": index, "prompt": answer.prompt, "answer": f"({key})", "response": answer.text}
            for index, (_, _, key) in rows.items()
            if (answer := found.get(str(index)))
        )
        write_json_lines(output, lines)

    def _rows(self, root: Path) -> dict[int, tuple[str, list[str], str]]:
        """Returns question, the two options, and the key `a` or `b` of each row."""
        path = self.path(root, self.question_file)
        rows: dict[int, tuple[str, list[str], str]] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for index, question, options, key in (row[:4] for row in list(csv.reader(file))[1:]):
                    a, b = options.split("(b)")
                    rows[int(index)] = question, [a.replace("(a)", "").strip(), b.strip()], key.strip("() ").lower()
        except (ValueError, csv.Error):
            rows = {}
        if not rows or {key for _, _, key in rows.values()} - {"a", "b"}:
            raise UserError(f"{path} does not hold MMVP's Index, Question, Options '(a) .. (b) ..', Correct Answer.")
        return rows


def extract(text: str) -> str:
    """Finds what an answer chooses, in small letters: an option's letter or its words."""
    text = text.lower().strip()
    for word in ("answer is", "answer:"):
        text = text.rpartition(word)[2]
    return text.strip().rstrip(".:,").lstrip("(").rstrip(")")


def _is_right(answer: Answer | None, options: list[str], key: str) -> bool:
    return answer is not None and extract(answer.text) in (key, options["ab".index(key)].lower())
