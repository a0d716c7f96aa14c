"""A run that is cut anywhere and continues ends with the bits of one that was not."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.runs import LORA, PROJECTOR, ZERO_2, Runs, bits, steps_of

LAST = 8  # steps: two epochs of four
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"recipe": LORA, "flags": []},
    "lora, two workers": {"recipe": LORA, "flags": ["--dataloader_num_workers", "2"]},
    "projector": {"recipe": PROJECTOR, "flags": []},
    "lora, ZeRO-2, two ranks": {"recipe": LORA, "flags": ZERO_2, "ranks": 2},
}


def go(runs: Runs, output: str, name: str, log: Path) -> Any:
    given = dict(RECIPES[name])
    flags = given.pop("flags")
    done = runs.run(output, *flags, **given, fault=f"log_ids:{log}")
    assert set(done.codes) == {0}, done.text
    return done


def ids_of(log: Path) -> list[Any]:
    """What each rank saw in each step."""
    files = sorted(log.parent.glob(f"{log.name}.*"))
    return sorted(json.loads(line) for file in files for line in file.read_text().splitlines())


@pytest.fixture(scope="module", params=list(RECIPES))
def whole(runs: Runs, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A run without a break, which keeps every checkpoint."""
    name = request.param
    output = f"whole-{list(RECIPES).index(name)}"
    go(runs, output, name, runs / f"{output}.ids")
    return name, runs / output


def test_a_run_is_the_same_again(runs: Runs, whole: tuple[str, Path]) -> None:
    name, before = whole
    again = f"{before.name}-again"
    go(runs, again, name, runs / f"{again}.ids")
    for folder in ("", *(f"checkpoint-{step}" for step in range(1, LAST + 1))):
        expected = bits(before / folder)
        assert expected
        assert bits(runs / again / folder) == expected, folder
    assert steps_of(runs / again) == steps_of(before)
    assert ids_of(runs / f"{again}.ids") == ids_of(runs / f"{before.name}.ids")


def test_every_cut_ends_with_the_same_bits(runs: Runs, whole: tuple[str, Path]) -> None:
    name, before = whole
    ids = ids_of(runs / f"{before.name}.ids")
    for step in range(1, LAST):
        cut = f"{before.name}-cut{step}"
        (runs / cut).mkdir()
        shutil.copy(before / "run.json", runs / cut)
        shutil.copytree(before / f"checkpoint-{step}", runs / cut / f"checkpoint-{step}")
        done = go(runs, cut, name, runs / f"{cut}.ids")
        assert f"continuing from {runs / cut}/checkpoint-{step}" in done.text
        assert bits(runs / cut) == bits(before)
        assert bits(runs / cut / f"checkpoint-{LAST}") == bits(before / f"checkpoint-{LAST}")
        assert steps_of(runs / cut) == steps_of(before)
        assert ids_of(runs / f"{cut}.ids") == [line for line in ids if line[0] > step]
        shutil.rmtree(runs / cut)


def test_each_sample_comes_once_an_epoch(runs: Runs, whole: tuple[str, Path]) -> None:
    lines = ids_of(runs / f"{whole[1].name}.ids")
    for epoch in (lines[: len(lines) // 2], lines[len(lines) // 2 :]):
        seen = Counter(name for _, _, names in epoch for name in names)
        assert seen == Counter({f"sample{number}": 1 for number in range(16)})


def test_workers_do_not_change_the_order(runs: Runs) -> None:
    logs = {}
    for workers in (0, 1, 2):
        output = f"workers{workers}"
        flags = ["--dataloader_num_workers", str(workers), "--save_strategy", "no"]
        done = runs.run(output, *flags, fault=f"log_ids:{runs / output}.ids")
        assert done.codes == [0], done.text
        logs[workers] = ids_of(runs / f"{output}.ids")
    assert logs[0] == logs[1] == logs[2]


def test_a_run_that_was_cut_after_its_last_step_makes_no_other(runs: Runs) -> None:
    """That step is amid an epoch."""
    flags = ["--max_steps", "3"]
    assert runs.run("three", *flags).codes == [0]
    (runs / "three-cut").mkdir()
    shutil.copy(runs / "three" / "run.json", runs / "three-cut")
    shutil.copytree(runs / "three" / "checkpoint-3", runs / "three-cut" / "checkpoint-3")
    done = runs.run("three-cut", *flags)
    assert done.codes == [0], done.text
    assert bits(runs / "three-cut") == bits(runs / "three")
    assert [path.name for path in (runs / "three-cut").glob("checkpoint-*")] == ["checkpoint-3"]
    assert json.loads((runs / "three-cut" / "metrics.json").read_text())["steps"] == 3
