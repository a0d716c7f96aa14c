"""Answers files: JSON lines in LLaVA's format, which an interrupted run can be continued from."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json, write_text


class AnswersFile:
    """An answers file on disk, and beside it the settings that its answers were made with (`NAME.meta.json`).

    Answers are appended as they are ready; nothing is written before the first. A last line that was cut off while it
    was written is dropped.

    Args:
        path: The answers file. It may exist, if the settings are those that it was made with.
        settings: What decides the answers, as JSON values.

    Attributes:
        answered: The answers there are, by question id.

    Raises:
        UserError: The file holds answers of another model or of other settings, or something else altogether.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.settings = settings
        self.settings_path = self.path.with_name(f"{self.path.name}.meta.json")
        self.answered: dict[str | int, dict[str, Any]] = {}
        if self.path.exists():
            self._check_settings()
            self._read()

    def append(self, answer: dict[str, Any]) -> None:
        """Adds one answer; it is in the file when this returns."""
        with self._writing():
            if not self.answered:
                write_json(self.settings_path, self.settings)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(answer) + "\n")
        self.answered[answer["question_id"]] = answer

    def finish(self, order: Iterable[str | int]) -> None:
        """Brings the answers into the order of the questions.

        Args:
            order: The ids of all questions. All must have been answered.
        """
        lines = "".join(json.dumps(self.answered[key]) + "\n" for key in order)
        with self._writing():
            write_json(self.settings_path, self.settings)  # there are none yet if there was no question
            write_text(self.path, lines)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"Cannot write the answers file {self.path}: {error.strerror}.") from error

    def _check_settings(self) -> None:
        if not self.path.is_file():
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

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                answer = json.loads(line)
                self.answered[answer["question_id"]] = answer
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{self.path}, line {number} is not an answer. {_MEND}") from error
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))


_MEND = "Give another --answers-file, or move this one away."
