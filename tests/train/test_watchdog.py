"""A run that has come to a stop ends on all ranks, and says which one the others wait for."""

import faulthandler
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llava_sp.train import events
from llava_sp.train.watchdog import FOLDER_NAME, STALLED, Progress, Watchdog, describe, find_stalled
from llava_sp.utils.ranks import world_size

LIMIT = 8.0  # seconds; a step of a slow machine takes less, and the runs wait at one time
STEPS = 4

FORK = multiprocessing.get_context("fork")  # ranks that need not import torch again


def sleep_forever(rank: int, step: int, doing: str) -> None:
    if (rank, step, doing) == (world_size() - 1, 3, "fetching a batch"):
        time.sleep(1000)


def stop_the_first(rank: int, step: int, doing: str) -> None:
    if (rank, step, doing) == (0, 3, "fetching a batch"):
        os.kill(os.getpid(), signal.SIGSTOP)


def sleep_beside_a_collective(rank: int, step: int, doing: str) -> None:
    if (rank, step, doing) == (1, 3, "updating"):
        time.sleep(1000)


def be_slow(rank: int, step: int, doing: str) -> None:
    if doing == "fetching a batch":
        time.sleep(LIMIT / 3)


def begin_slowly(rank: int, step: int, doing: str) -> None:
    if (rank, step, doing) == (0, 1, "fetching a batch"):
        time.sleep(1.5 * LIMIT)


def save_long(rank: int, step: int, doing: str) -> None:
    if (rank, doing) == (0, "saving"):
        time.sleep(1.5 * LIMIT)


def burn(rank: int, step: int, doing: str) -> None:
    if (step, doing) == (3, "fetching a batch"):
        re.match(r"(a*)*b", "a" * 40)  # holds the interpreter, so that no other thread of it runs


def train(folder: Path, rank: int, ranks: int, work: Callable[[int, int, str], None]) -> None:
    """A training loop of a rank that does `work` in every phase, and meets the others once a step."""
    with (folder / f"stderr-{rank}").open("w") as said:
        os.dup2(said.fileno(), 2)
    sys.stderr = os.fdopen(2, "w")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.pop("TORCHELASTIC_ERROR_FILE", None)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    with Watchdog(folder / "out", LIMIT) as watchdog:
        for step in range(1, STEPS + 1):
            watchdog.beat("fetching a batch", step)
            work(rank, step, "fetching a batch")
            watchdog.beat("updating", step)
            work(rank, step, "updating")
            if ranks > 1:
                dist.all_reduce(torch.ones(1))
        watchdog.beat("saving", STEPS, slow=True)
        work(rank, STEPS, "saving")
        if ranks > 1:
            dist.barrier()
    os._exit(0)


@dataclass
class Run:
    """How the ranks of a run ended; a code of None is a rank that has not."""

    codes: list[int | None]
    said: list[str]
    folder: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """All runs at once, for they mostly wait."""
    works = [(sleep_forever, 2), (stop_the_first, 2), (sleep_beside_a_collective, 2), (be_slow, 2), (begin_slowly, 2)]
    works += [(save_long, 2), (sleep_forever, 1), (burn, 1)]
    faulthandler.cancel_dump_traceback_later()  # pytest's alarm: a process that is forked from under it can set none
    started = {}
    for work, ranks in works:
        folder = tmp_path_factory.mktemp(work.__name__)
        processes = [FORK.Process(target=train, args=(folder, rank, ranks, work)) for rank in range(ranks)]
        started[f"{work.__name__} {ranks}"] = (folder, processes)
        for process in processes:
            process.start()
    found = {}
    for name, (folder, processes) in started.items():
        for process in reversed(processes):  # one that is stopped itself, the first, does not end
            process.join(timeout=2 if process is processes[0] and name.startswith("stop") else 600)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        said = [path.read_text() for path in sorted(folder.glob("stderr-*"))]
        found[name] = Run(codes, said, folder / "out")
    return found


@pytest.mark.parametrize(
    ("name", "doing"), [("sleep_forever 2", "fetching"), ("sleep_beside_a_collective 2", "updating")]
)
def test_a_rank_that_stops_ends_all_and_all_name_it(runs: dict[str, Run], name: str, doing: str) -> None:
    run = runs[name]
    assert run.codes == [STALLED, STALLED]
    for rank, said in enumerate(run.said):
        place = rf"step 3 \({doing}.*, test_watchdog.py:\d+\)"
        assert re.match(rf"error: Rank 1 has made no progress for \d+ s in {place}; the others wait\.", said)
        assert said.count("\n") == 1 and said.endswith("[rank 1]\n" if rank else "checkpoint.\n")
    assert "in sleep_" in (run.folder / "stalled-rank-1.txt").read_text()
    assert not (run.folder / "stalled-rank-0.txt").exists()
    (event,) = events.read(run.folder)
    assert (event["event"], event["step"], event["ranks"]) == ("stalled", 3, [1])


def test_a_rank_that_is_stopped_from_outside_ends_the_others(runs: dict[str, Run]) -> None:
    run = runs["stop_the_first 2"]
    assert run.codes == [None, STALLED]
    assert re.match(
        r"error: Rank 0 has not answered for \d+ s, since step [123] .*; the others wait\. The proc", run.said[1]
    )
    (event,) = events.read(run.folder)
    assert event["ranks"] == [0]


@pytest.mark.parametrize("name", ["be_slow 2", "begin_slowly 2", "save_long 2"])
def test_what_is_slow_goes_on_and_leaves_nothing_behind(runs: dict[str, Run], name: str) -> None:
    assert runs[name].codes == [0, 0]
    assert runs[name].said == ["", ""]
    assert list(runs[name].folder.iterdir()) == []


def test_a_process_alone_ends_too(runs: dict[str, Run]) -> None:
    run = runs["sleep_forever 1"]
    assert run.codes == [STALLED]
    assert re.match(
        r"error: The run has made no progress for \d+ s in step 3 \(fetching a batch, .*\)\. What", run.said[0]
    )


def test_a_thread_that_holds_the_interpreter_does_not_keep_it(runs: dict[str, Run]) -> None:
    run = runs["burn 1"]
    assert run.codes == [1]
    assert "in burn" in run.said[0]


NOW = 1000.0

AT_WORK = Progress(8, 1, "updating", since=NOW - 20, allowed=10, told=NOW)


def test_the_rank_that_is_behind_is_the_one_that_has_stopped() -> None:
    assert find_stalled({0: AT_WORK, 1: replace(AT_WORK, count=0), 2: AT_WORK}, NOW) == [1]
    assert find_stalled({0: AT_WORK, 1: AT_WORK, 2: replace(AT_WORK, step=7, count=5)}, NOW) == [2]
    assert find_stalled({0: AT_WORK, 1: AT_WORK}, NOW) == [0, 1]


def test_a_rank_that_waits_for_others_has_not_stopped_unless_all_do() -> None:
    waits = replace(AT_WORK, waits=True)
    assert find_stalled({0: waits, 1: AT_WORK}, NOW) == [1]
    assert find_stalled({0: replace(waits, count=0), 1: AT_WORK}, NOW) == [1]
    assert find_stalled({0: replace(waits, count=0), 1: waits}, NOW) == [0]


def test_a_rank_has_the_time_of_what_it_does_whatever_the_others_do() -> None:
    saving = replace(AT_WORK, count=0, allowed=30)
    assert find_stalled({0: saving, 1: AT_WORK}, NOW) == []
    assert find_stalled({0: saving, 1: AT_WORK}, NOW + 10) == [0]


def test_several_that_have_stopped_are_all_named(tmp_path: Path) -> None:
    behind = replace(AT_WORK, count=0, where="images.py:3")
    everyone = {0: behind, 1: AT_WORK, 2: behind}
    told = describe([0, 2], everyone, NOW, tmp_path)
    assert told.startswith("Ranks 0 and 2 have made no progress for 20 s in step 8 (updating, images.py:3); the others")
    assert f"{tmp_path}/stalled-rank-*.txt" in told


def told(folder: Path, rank: int, progress: Progress) -> None:
    """Leaves what a rank tells."""
    (folder / FOLDER_NAME).mkdir(exist_ok=True)
    (folder / FOLDER_NAME / f"rank-{rank}").write_text(json.dumps(asdict(progress)))


def test_what_a_former_run_left_says_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    told(tmp_path, 1, replace(AT_WORK, told=time.time() - 1))
    with Watchdog(tmp_path, 1000) as watchdog:
        told(tmp_path, 2, replace(AT_WORK, told=time.time()))
        everyone = watchdog._all(watchdog._own())
    assert [everyone[rank].step for rank in range(3)] == [0, -1, 8]


def test_a_rank_that_leaves_by_an_error_can_be_named_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ZeroDivisionError), Watchdog(tmp_path, 1000) as watchdog:
        watchdog.beat("updating", 1)
        raise ZeroDivisionError
    left = json.loads((tmp_path / FOLDER_NAME / "rank-0").read_text())
    assert (left["step"], left["doing"]) == (1, "updating")
    with Watchdog(tmp_path, 1000) as watchdog:
        watchdog.beat("updating", 1)
    assert json.loads((tmp_path / FOLDER_NAME / "rank-0").read_text())["doing"] == "done"  # rank 1 has not left yet


def test_without_a_limit_nothing_is_watched(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Watchdog(tmp_path, 0) as watchdog:
        watchdog.beat("saving", 1, slow=True)
        assert set(threading.enumerate()) <= before  # another one may end meanwhile
    assert list(tmp_path.iterdir()) == []
