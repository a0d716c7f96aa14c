"""Answers files: JSON lines in LLaVA's format, which an interrupted run can be continued from."""

import glob
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json, write_json_lines, writing

Key = tuple[str | int, str]
"""Tells a question's answer from others: id and prompt, see `Question.key`."""


@dataclass(frozen=True)
class Answer:
    """One line of an answers file, ours or LLaVA's.

    Attributes:
        question_id: The question's id; several questions may share it.
        prompt: The question as the file words it; empty if the file leaves it out.
        text: The answer.
        fields: The whole line.
    """

    question_id: str | int
    prompt: str
    text: str
    fields: dict[str, Any]

    @property
    def key(self) -> Key:
        """That of the question."""
        return self.question_id, self.prompt


Answers = list[Answer]
"""The answers of a file, in its order."""


def read_answers(path: str | Path) -> Answers:
    """Reads an answers file, also one that LLaVA wrote.

    Raises:
        UserError: The file is missing, or a line is no answer; the message gives the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"Cannot read the answers file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The answers file {path} is not UTF-8 text: {error}.") from error
    answers = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answers.append(_answer(json.loads(line)))
        except json.JSONDecodeError:
            what = "half written; the command that wrote it continues it" if number == len(lines) else "not JSON"
            raise UserError(f"{path}, line {number} is {what}.") from None
        except (TypeError, KeyError, ValueError, RecursionError):
            raise UserError(f"{path}, line {number} is not an answer with question_id and text.") from None
    return answers


def record(question: Question, text: str, model: str) -> dict[str, Any]:
    """Returns the line of an answers file, with LLaVA's names."""
    return {
        "question_id": question.id,
        "prompt": question.prompt,
        "text": text,
        **question.fields,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{model} {question.id!r} {question.prompt}").hex,
        "model_id": model,
        "metadata": {},
    }


class AnswersFile:
    """An answers file on disk, and beside it the settings that its answers were made with (`NAME.meta.json`).

    Answers are appended as they are ready; nothing is written before the first. A last line that was cut off while it
    was written is dropped. Several ranks append to a part each (`NAME.part-RANK`), so that none waits for another.
    Questions that could not be answered are noted there as well, and end in `NAME.failures.jsonl`; a run that continues
    tries them again.

    The first rank must have made its instance before the others make theirs, and calls `finish` when all are through.

    Args:
        path: The answers file. It may exist, if the settings are those that it was made with.
        settings: What decides the answers, as JSON values.
        rank: Which of the ranks this is.
        ranks: Number of ranks that answer together.

    Attributes:
        answered: The answers there were at the beginning, the same ones for all ranks, and those appended since.
        failed: Why the questions without an answer have none.

    Raises:
        UserError: The file holds answers of another model or of other settings, or something else altogether.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], *, rank: int = 0, ranks: int = 1) -> None:
        self.path = Path(path)
        self.settings = settings
        self.settings_path = self.path.with_name(f"{self.path.name}.meta.json")
        self.failures_path = self.path.with_name(f"{self.path.name}.failures.jsonl")
        self.part = self.path if ranks == 1 else self.path.with_name(f"{self.path.name}.part-{rank}")
        self.answered: dict[Key, Answer] = {}
        self.failed: dict[Key, str] = {}
        if self.path.exists() or self._parts():
            self._check_settings()
        if rank == 0:
            self._gather()
        elif self.path.exists():
            self._read(self.path)

    def append(self, answer: dict[str, Any]) -> None:
        """Adds the record of one answer; it is in the file when this returns."""
        self._append(answer)
        self._take(answer)

    def append_failure(self, question: Question, reason: str) -> None:
        """Notes that a question could not be answered."""
        failure = {"question_id": question.id, "prompt": question.prompt, "failure": reason}
        self._append(failure)
        self._take(failure)

    def remaining(self, questions: Iterable[Question]) -> list[Question]:
        """Returns the questions that have no answer yet, each once; they are the same on all ranks at the beginning."""
        return list({question.key: question for question in questions if question.key not in self.answered}.values())

    def finish(self, questions: Sequence[Question]) -> None:
        """Joins the ranks' parts and brings the answers into the order of the questions.

        Args:
            questions: All questions. Those that were not asked in this run keep the answers that they have.
        """
        with writing(self.path):
            self._gather()
            write_json(self.settings_path, self.settings)  # there are none yet if there was no question
            keys = [question.key for question in questions]
            write_json_lines(self.path, (self.answered[key].fields for key in keys if key in self.answered))
            if self.failed:
                write_json_lines(self.failures_path, map(_failure, self.failed.items()))
            else:
                self.failures_path.unlink(missing_ok=True)

    def _gather(self) -> None:
        """Takes in what all ranks have written; what is half written is cut off. A crash on the way loses nothing."""
        torn = self.path.exists() and self._read(self.path)
        parts = self._parts()
        for part in parts:
            self._read(part)
        if parts or torn:
            rows = [*(answer.fields for answer in self.answered.values()), *map(_failure, self.failed.items())]
            write_json_lines(self.path, rows)
        for part in parts:
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*"))

    def _append(self, row: dict[str, Any]) -> None:
        with writing(self.path):
            if not self.settings_path.exists():
                write_json(self.settings_path, self.settings)
            with self.part.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _take(self, row: dict[str, Any]) -> None:
        if "failure" in row:
            key = row["question_id"], row["prompt"]
            if key not in self.answered:
                self.failed[key] = row["failure"]
            return
        answer = _answer(row)
        self.answered[answer.key] = answer
        self.failed.pop(answer.key, None)

    def _check_settings(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"The answers file {self.path} is not a file.")
        if not self.settings_path.exists():
            raise UserError(
                f"{self.path} exists, but without {self.settings_path.name}, which says what made it. {_MEND}"
            )
        made_with = read_json(self.settings_path)
        for name, value in self.settings.items():
            found = made_with.get(name) if isinstance(made_with, dict) else None
            if found != value:
                raise UserError(f"{self.path} holds answers made with {name} = {found!r}; now it is {value!r}. {_MEND}")

    def _read(self, path: Path) -> bool:
        """Takes in the whole lines of a file; returns whether another one was begun."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not an answer. {_MEND}") from error
        return len(whole) < len(content)


def _answer(row: dict[str, Any]) -> Answer:
    text = row["text"] if "text" in row else row["response"]  # as MMVP's own answers files call it
    answer = Answer(row["question_id"], row.get("prompt", ""), text, row)
    if not isinstance(answer.question_id, str | int) or not isinstance(answer.text, str):
        raise TypeError
    return answer


def _failure(item: tuple[Key, str]) -> dict[str, Any]:
    (identity, prompt), reason = item
    return {"question_id": identity, "prompt": prompt, "failure": reason}


_MEND = "Name another output, or move this one away."
