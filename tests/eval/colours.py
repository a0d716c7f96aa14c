"""A benchmark for tests of the suite, and one rank of it: `python -m tests.eval.colours FLAGS`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from llava_sp.eval import suite
from llava_sp.eval.__main__ import parse
from llava_sp.eval.answers import Answers, AnswersFile
from llava_sp.eval.benchmarks.base import Benchmark, DataFile, Scores, item_key
from llava_sp.eval.inference import GenerationSettings
from llava_sp.utils.logging import setup_logging
from llava_sp.utils.ranks import rank


class Colours(Benchmark):
    """Asks questions about images; an answer is right if its length is even."""

    name = "colours"
    title = "Colours"
    folder = "colours-folder"
    question_file = "questions.jsonl"
    images = "images"
    files = (
        DataFile(question_file, "example.org/questions", "the questions"),
        DataFile(images, "example.org/images", "the images"),
    )
    settings = GenerationSettings(temperature=0, max_new_tokens=6)

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        found, notes = self.align(answers, (question.id for question in self.questions(root)))
        items = {item_key(key): float(len(answer.text) % 2 == 0) for key, answer in found.items()}
        return Scores(
            "even", {"even": 100 * sum(items.values()) / len(items)}, items, "even lengths", notes=dict(notes)
        )


class Letters(Colours):
    """The same, handed in to a server."""

    name = "letters"
    title = "Letters"
    scored = "server"
    suffix = ".json"

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        output.write_text(json.dumps([answer.text for answer in answers]))


def die_while_writing(count: int) -> None:
    """Lets this process be killed in the middle of its so-manieth line."""
    append, written = AnswersFile._append, []

    def append_or_die(self: AnswersFile, row: dict[str, Any]) -> None:
        written.append(row)
        if len(written) == count:
            with self.part.open("a") as file:
                file.write(json.dumps(row)[:20])
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, row)

    AnswersFile._append = append_or_die


def main() -> None:
    """Runs both benchmarks as one rank."""
    setup_logging()
    if "DIE_AFTER" in os.environ:
        die_while_writing(int(os.environ["DIE_AFTER"]) + rank())
    sys.exit(0 if suite.evaluate([Colours(), Letters()], parse(sys.argv[1:])) else 1)


if __name__ == "__main__":
    main()
