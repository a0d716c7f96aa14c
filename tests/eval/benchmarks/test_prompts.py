"""The prompts and generation settings of every benchmark, frozen: a change here changes published scores.

`python -m tests.eval.benchmarks.test_prompts` writes the snapshot anew, for a change that is meant.
"""

from dataclasses import asdict
from typing import Any

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.files import read_json, write_json
from tests.eval.benchmarks.helpers import FIXTURES, answers_to

SNAPSHOT = FIXTURES / "prompts.json"


def prompts() -> dict[str, Any]:
    """Returns the settings and the first questions of each benchmark, as they are asked and as they are recorded."""
    found = {}
    for name, benchmark in BENCHMARKS.items():
        questions = [
            {
                "id": question.id,
                "image": f"{len(question.image)} bytes" if isinstance(question.image, bytes) else question.image,
                "asked": question.text.split("\n"),
                "recorded": None if question.recorded is None else question.recorded.split("\n"),
            }
            for question in benchmark.questions(FIXTURES / name)[:2]
        ]
        found[name] = {"settings": asdict(benchmark.settings), "questions": questions}
    return found


def test_prompts_and_settings_are_those_of_the_snapshot():
    assert prompts() == read_json(SNAPSHOT)


def test_answers_in_llavas_files_meet_the_questions():
    for name, benchmark in BENCHMARKS.items():
        lines = (FIXTURES / name / "answers.jsonl").read_text().splitlines()
        keys = {question.key for question in benchmark.questions(FIXTURES / name)}
        given = {(answer.question_id, answer.prompt) for answer in answers_to(name)}
        assert given <= keys and lines, name


if __name__ == "__main__":
    write_json(SNAPSHOT, prompts())
