"""The quickstart's table."""

from pathlib import Path

from llava_sp.playground.quickstart import Run, score_table
from llava_sp.playground.scorer import TaskScore


def scores(accuracy: float) -> list[TaskScore]:
    return [TaskScore(task, 100, accuracy, 0.1, 0.2) for task in ("reading", "mean")]


def test_one_seed_has_the_interval_of_its_questions() -> None:
    run = Run("cropping", 0, Path())
    table = score_table({run: scores(0.5)}, {run: scores(0.1)}).splitlines()
    assert table[0].split() == ["task", "questions", "chance", "commonest", "cropping"]
    assert table[1].split() == ["reading", "100", "10.0", "20.0", "50.0", "+-", "9.6"]  # Wilson: 0.404 to 0.596
    assert table[3].split()[-3:] == ["10.0", "+-", "6.0"]


def test_several_seeds_are_one_column_with_their_deviation() -> None:
    runs = [Run(variant, seed, Path()) for variant in ("cropping", "none") for seed in (0, 1)]
    accuracies = (0.90, 0.94, 0.80, 0.80)
    found = {run: scores(accuracy) for run, accuracy in zip(runs, accuracies, strict=True)}
    table = score_table(found, found).splitlines()
    assert "cropping, 2 seeds" in table[0]
    assert table[1].split() == ["reading", "100", "10.0", "20.0", "92.0", "+-", "2.8", "80.0", "+-", "0.0"]
    assert "standard deviation" in table[4]
