"""Small files of each benchmark's format, made up, and answers to them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from llava_sp.eval.answers import Answers, read_answers

FIXTURES = Path(__file__).parents[2] / "fixtures" / "eval"


def answers_to(name: str) -> Answers:
    """The answers that lie with a benchmark's files."""
    return read_answers(FIXTURES / name / "answers.jsonl")


def without(answers: Answers, *places: int) -> Answers:
    """Answers without some of them."""
    return [answer for place, answer in enumerate(answers) if place not in places]


def with_text(answers: Answers, place: int, text: str) -> Answers:
    """Answers of which one is worded otherwise."""
    return [replace(answer, text=text) if n == place else answer for n, answer in enumerate(answers)]


def copy_of(name: str, folder: Path) -> Path:
    """A copy of a benchmark's files, to be damaged."""
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def write_answers(path: Path, answers: Answers) -> Path:
    """Writes an answers file."""
    path.write_text("".join(json.dumps(answer.fields | {"text": answer.text}) + "\n" for answer in answers))
    return path
