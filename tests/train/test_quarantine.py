"""Bad samples are written down once each, alike for any number of ranks and interruptions; too many end the run."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from llava_sp.data.problems import Problem, Replaced
from llava_sp.train.quarantine import QUARANTINE_NAME, Quarantine
from llava_sp.utils.errors import UserError

MISSING, CORRUPT = Problem.IMAGE_MISSING, Problem.IMAGE_CORRUPT


def bad(position: int, by: str = "fine", problem: Problem = MISSING) -> Replaced:
    return Replaced(position, f"s{position}", problem, f"The image {position}.jpg is bad.", by)


STEPS = [
    [bad(7), bad(3, problem=CORRUPT)],
    [],
    [bad(7, "another"), bad(5)],  # 7 was met before
    [bad(9, "b"), bad(9, "a"), bad(1)],
    [bad(3)],
    [bad(8)],
]
"""What each step replaces."""


def fill(folder: Path, first: int = 1, last: int = len(STEPS), **options: Any) -> Quarantine:
    """Goes through some of the steps, as one process does."""
    quarantine = Quarantine(folder, **{"samples": 100, "max_share": 1.0, **options})
    for step in range(first, last + 1):
        quarantine.note(STEPS[step - 1], step)
    return quarantine


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / QUARANTINE_NAME).read_text().splitlines()]


def on_ranks(number: int, folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """Runs `work(rank)` in a group of processes; returns what each of them does, as JSON brings it back."""
    context = start_processes(_rank, args=(number, folder, work), nprocs=number, join=False, start_method="fork")
    try:
        while not context.join(timeout=60):
            pass
    finally:
        for process in context.processes:
            process.kill()
    return [json.loads((folder / f"result{rank}").read_text()) for rank in range(number)]


def _rank(rank: int, number: int, folder: Path, work: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)  # threads of the parent are gone
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(number))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=number)
    (folder / f"result{rank}").write_text(json.dumps(work(rank)))
    dist.barrier()
    dist.destroy_process_group()


def test_each_sample_is_written_once_with_the_step_that_met_it_first(tmp_path: Path) -> None:
    assert fill(tmp_path).count == 6
    assert [(entry["record"], entry["step"]) for entry in read(tmp_path)] == [
        (4, 1), (8, 1), (6, 3), (2, 4), (10, 4), (9, 6),
    ]  # fmt: skip
    assert read(tmp_path)[0] == {
        "id": "s3",
        "record": 4,
        "problem": "image file cannot be decoded",
        "message": "The image 3.jpg is bad.",
        "step": 1,
        "replaced_by": "fine",
    }


def test_good_data_leaves_no_file(tmp_path: Path) -> None:
    assert Quarantine(tmp_path, 10, 0.1).note([], 1) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("samples", [29, 30])
def test_the_limit_may_be_reached_but_not_exceeded(samples: int, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 100, 0.29)  # in floating point, 0.29 * 100 is less than 29
    for position in range(samples - 1):
        quarantine.note([bad(position)], 1)
    if samples == 29:
        quarantine.note([bad(28)], 2)
    else:
        with pytest.raises(UserError, match=r"30 of 100 samples cannot be read, a share of 0\.3:"):
            quarantine.note([bad(29)], 2)
    assert len(read(tmp_path)) == samples


def test_the_error_names_kinds_samples_file_and_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fill(tmp_path, samples=1000, max_share=0.005)
    assert str(error.value) == (
        "6 of 1,000 samples cannot be read, a share of 0.006: 5 x image file is missing, 1 x image file cannot be "
        f"decoded. The first: 's3', 's7', 's5', 's1', 's9', ...; all are in {tmp_path / QUARANTINE_NAME}. Mend the "
        "data (--check_data full looks at all of it), or raise --max_bad_share, now 0.005."
    )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What is logged."""
    monkeypatch.setattr(logging.getLogger("llava_sp"), "propagate", True)
    yield lambda: [record.getMessage() for record in caplog.records]


def test_the_first_ones_are_told_one_by_one_and_then_their_number_now_and_then(
    said: Callable[[], list[str]], tmp_path: Path
) -> None:
    quarantine = Quarantine(tmp_path, 1000, 1.0)
    for position in range(40):
        quarantine.note([bad(position)], position + 1)
    assert said()[0] == "Sample 's0' (record 1) cannot be read, 'fine' takes its place: The image 0.jpg is bad."
    assert [line.split()[0] for line in said()] == ["Sample"] * 10 + ["16", "32"]
    assert "16 of 1,000 samples cannot be read" in said()[10]


@pytest.mark.parametrize("killed", range(len(STEPS) + 1))
def test_an_interrupted_run_ends_with_the_file_of_an_uninterrupted_one(killed: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    fill(tmp_path / "whole")
    for first in range(1, min(killed + 2, 7)):  # the step after the checkpoint that it continues from
        folder = tmp_path / str(first)
        folder.mkdir()
        fill(folder, last=killed)
        assert fill(folder, first=first).count == 6
        assert (folder / QUARANTINE_NAME).read_bytes() == (tmp_path / "whole" / QUARANTINE_NAME).read_bytes()


def test_a_line_that_was_cut_off_is_mended_wherever_the_cut_is(tmp_path: Path) -> None:
    fill(tmp_path)
    file = tmp_path / QUARANTINE_NAME
    whole = file.read_bytes()
    *before, last = whole.splitlines(keepends=True)
    for end in range(1, len(last)):
        file.write_bytes(b"".join(before) + last[:end])
        fill(tmp_path, first=6)
        assert file.read_bytes() == whole


def test_a_run_that_starts_anew_forgets_the_file(tmp_path: Path) -> None:
    fill(tmp_path)
    assert Quarantine(tmp_path, 100, 0.01).note([], 1) is None
    assert not (tmp_path / QUARANTINE_NAME).exists()


def test_a_lower_limit_holds_for_what_was_met_before(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match="5 of 100 samples"):
        Quarantine(tmp_path, 100, 0.04).note([], 6)


def test_a_file_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{QUARANTINE_NAME} cannot be written: No such file or directory"):
        Quarantine(tmp_path / "gone", 100, 1.0).note([bad(1)], 1)


def test_two_ranks_write_what_one_does(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        quarantine = Quarantine(tmp_path / "two", 100, 1.0)
        for step, replaced in enumerate(STEPS, start=1):
            quarantine.note(replaced[rank::2], step)
        return quarantine.count

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "one")
    on_ranks(2, tmp_path, work)
    assert (tmp_path / "two" / QUARANTINE_NAME).read_bytes() == (tmp_path / "one" / QUARANTINE_NAME).read_bytes()


def test_all_ranks_stop_at_the_same_step_with_the_same_words(tmp_path: Path) -> None:
    def work(rank: int) -> list[Any]:
        quarantine = Quarantine(tmp_path, 100, 0.03)
        for step, replaced in enumerate(STEPS, start=1):
            try:
                quarantine.note(replaced if rank else [], step)  # the first rank has met none itself
            except UserError as error:
                return [step, str(error)]
        return []

    first, second = on_ranks(2, tmp_path, work)
    assert first == second
    assert first[0] == 4
    assert first[1].startswith("5 of 100 samples cannot be read")


def test_where_no_rank_has_any_they_exchange_one_number(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        quarantine, calls = Quarantine(tmp_path, 100, 1.0), 0
        quarantine.note([], 1)

        def count(tensor: torch.Tensor, *arguments: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            assert tensor.numel() == 1
            return reduce(tensor, *arguments, **kwargs)

        def none(*arguments: Any, **kwargs: Any) -> None:
            raise AssertionError("there is nothing to tell")

        reduce, dist.all_reduce = dist.all_reduce, count
        dist.all_gather_object = dist.broadcast_object_list = none
        for step in range(2, 12):
            quarantine.note([], step)
        return calls

    assert on_ranks(2, tmp_path, work) == [10, 10]
