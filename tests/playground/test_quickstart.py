"""The quickstart's table."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_sp.playground import quickstart
from llava_sp.playground.quickstart import Run, score_table
from llava_sp.playground.scorer import TaskScore
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_json_lines
from llava_sp.utils.ranks import LAUNCHER


def scores(accuracy: float) -> list[TaskScore]:
    return [TaskScore(task, 100, accuracy, 0.1, 0.2) for task in ("reading", "mean")]


def test_one_seed_has_the_interval_of_its_questions() -> None:
    run = Run("cropping", 0, Path())
    table = score_table({run: scores(0.5)}, {run: scores(0.1)}).splitlines()
    assert table[0].split() == ["task", "questions", "chance", "commonest", "cropping"]
    assert table[1].split() == ["reading", "100", "10.0", "20.0", "50.0", "+-", "9.6"]  # Wilson: 0.404 to 0.596
    assert table[3].split()[-3:] == ["10.0", "+-", "6.0"]


def test_a_step_ends_with_the_quickstart_and_its_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], *, env: dict[str, str], **_: bool) -> SimpleNamespace:
        assert env[LAUNCHER] == str(os.getpid())
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr("subprocess.run", fail)
    with pytest.raises(UserError, match=r"see its message\. Once that is mended"):
        quickstart._step(["llava_sp.train.launch"])


def test_samples_are_of_other_tasks_and_other_images_each(tmp_path: Path) -> None:
    asked = [
        ("a", "0.png", "reading"),
        ("b", "0.png", "position"),
        ("c", "1.png", "position"),
        ("d", "2.png", "reading"),
    ]
    rows = [{"question_id": name, "image": image, "text": "?", "category": task} for name, image, task in asked]
    write_json_lines(tmp_path / "questions.jsonl", rows)
    write_json_lines(tmp_path / "annotations.jsonl", ({"question_id": name, "answer": "yes"} for name, *_ in asked))
    write_json_lines(tmp_path / "answers.jsonl", ({"question_id": name, "text": name} for name, *_ in asked))
    reading, position = quickstart.choose_samples([Run("none", 0, tmp_path)], tmp_path)
    assert reading == {"image": "0.png", "text": "?", "truth": "yes", "answers": {"none": "a"}}
    assert (position["image"], position["answers"]) == ("1.png", {"none": "c"})


def test_several_seeds_are_one_column_with_their_deviation() -> None:
    runs = [Run(variant, seed, Path()) for variant in ("cropping", "none") for seed in (0, 1)]
    accuracies = (0.90, 0.94, 0.80, 0.80)
    found = {run: scores(accuracy) for run, accuracy in zip(runs, accuracies, strict=True)}
    table = score_table(found, found).splitlines()
    assert "cropping, 2 seeds" in table[0]
    assert table[1].split() == ["reading", "100", "10.0", "20.0", "92.0", "+-", "2.8", "80.0", "+-", "0.0"]
    assert "standard deviation" in table[4]
