"""A run survives being killed at any moment, damaged checkpoints, and a full disk, and ends with the same bits."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_sp.train import checkpoint
from llava_sp.utils.errors import UserError
from tests.reliability.counting import COUNTS
from tests.reliability.runs import PROJECTOR, ZERO_2, Run, Runs, bits, steps_of, wait_until

SOAK = int(os.environ.get("SOAK", "0"))
"""How often each random fault is injected; the few of every test run if not given."""


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Path:
    """A run that nothing happens to."""
    done = runs.run("crash-whole", "--save_total_limit", "2")
    assert done.codes == [0], done.text
    return runs / "crash-whole"


def count(*, injected: int = 0, survived: int = 0, equal: int = 0) -> None:
    """Adds to the counts that are told at the end."""
    COUNTS["faults injected"] += injected
    COUNTS["faults survived"] += survived
    COUNTS["runs ended with the bits of an undisturbed one"] += equal


def ended_like(whole: Path, folder: Path) -> bool:
    """Whether a run ended as the other did: bits, log, and nothing left over."""
    names = [{path.name for path in place.iterdir()} - {"events.jsonl"} for place in (folder, whole)]
    return names[0] == names[1] and bits(folder) == bits(whole) and steps_of(folder) == steps_of(whole)


def kill(run: Run) -> None:
    for process in run.processes:
        os.killpg(process, signal.SIGKILL)
    run.wait()


def test_a_kill_at_any_file_that_is_written_loses_nothing(runs: Runs, whole: Path) -> None:
    marks = runs / "marks"
    counted = runs.run("crash-counted", "--save_total_limit", "2", fault=f"kill_at_file_event:{marks}")
    assert counted.codes == [0], counted.text
    events = marks.stat().st_size
    assert events > 100
    chosen = range(1, events + 1) if SOAK else random.Random(1).sample(range(1, events + 1), 10)  # noqa: S311
    for number in chosen:
        output = f"crash-at-{number}"
        cut = runs.run(output, "--save_total_limit", "2", fault=f"kill_at_file_event:{number}")
        assert cut.codes == [-signal.SIGKILL], cut.text
        again = runs.run(output, "--save_total_limit", "2")
        assert again.codes == [0], again.text
        equal = ended_like(whole, runs / output)
        count(injected=1, survived=1, equal=int(equal))
        assert equal, number
        shutil.rmtree(runs / output)


@pytest.mark.parametrize("setting", ["one process", "two workers", "ZeRO-2, two ranks"])
def test_kills_at_random_moments_cost_no_more_than_the_steps_since_the_last_checkpoint(
    runs: Runs, setting: str
) -> None:
    flags = {"one process": [], "two workers": ["--dataloader_num_workers", "2"], "ZeRO-2, two ranks": ZERO_2}[setting]
    ranks = 2 if "ranks" in setting else 1
    began = time.monotonic()
    done = runs.run(f"kills-whole-{ranks}", *flags, ranks=ranks)
    assert set(done.codes) == {0}, done.text
    seconds = time.monotonic() - began
    chosen = random.Random(setting)  # noqa: S311
    left, attempt = SOAK or 4, 0
    while left:
        attempt += 1
        output = f"kills-{ranks}-{attempt}"
        while left:
            before = len(checkpoint.checkpoints(runs / output))
            run = runs.start(output, *flags, ranks=ranks)
            time.sleep(chosen.uniform(0, seconds))
            kill(run)
            assert len(checkpoint.checkpoints(runs / output)) >= before
            if (runs / output / "metrics.json").exists():
                break
            left -= 1
            count(injected=1)
        finished = runs.run(output, *flags, ranks=ranks)
        assert set(finished.codes) == {0}, finished.text
        equal = bits(runs / output) == bits(runs / f"kills-whole-{ranks}")
        assert equal
        shutil.rmtree(runs / output)
    count(survived=SOAK or 4, equal=SOAK or 4)
    shutil.rmtree(runs / f"kills-whole-{ranks}")


def delete(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize("deepspeed", [False, True])
@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_taken(
    runs: Runs, damage: Callable[[Path], None], deepspeed: bool
) -> None:
    source = runs / f"damaged-{deepspeed}"
    if not source.exists():
        flags = [*ZERO_2, "--stop_after_steps", "3"] if deepspeed else ["--stop_after_steps", "3"]
        assert set(runs.run(source.name, *flags, ranks=1 + deepspeed).codes) == {0}
    newest = source / "checkpoint-3"
    for file in sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file()):
        folder = runs / f"damaged-{damage.__name__}-{deepspeed}"
        shutil.copytree(source, folder)
        damage(folder / "checkpoint-3" / file)
        with pytest.raises(UserError) as error:
            checkpoint.find_resume(str(folder / "checkpoint-3"), folder, deepspeed=deepspeed)
        assert file.name in str(error.value)
        assert checkpoint.find_resume(None, folder, deepspeed=deepspeed) == folder / "checkpoint-2"
        assert (folder / "checkpoint-3.damaged-1").is_dir()  # nothing is lost
        assert not (folder / "checkpoint-3").exists()
        count(injected=1, survived=1)
        shutil.rmtree(folder)


def test_a_run_whose_newest_checkpoint_is_damaged_ends_with_the_same_bits(runs: Runs, whole: Path) -> None:
    assert runs.run("fallback", "--save_total_limit", "2", "--stop_after_steps", "5").codes == [0]
    flip(runs / "fallback" / "checkpoint-5" / "optimizer.pt")
    again = runs.run("fallback", "--save_total_limit", "2")
    assert again.codes == [0], again.text
    assert "optimizer.pt is not what was written" in again.text
    assert "checkpoint-5.damaged-1" in again.text
    assert bits(runs / "fallback") == bits(whole)
    assert (runs / "fallback" / "checkpoint-5.damaged-1" / "optimizer.pt").is_file()


def test_a_damaged_result_is_no_start(runs: Runs) -> None:
    stage1 = runs.run("stage1", "--max_steps", "1", recipe=PROJECTOR)
    assert stage1.codes == [0], stage1.text
    start = ["--init_from", str(runs / "stage1"), "--max_steps", "1"]
    assert runs.run("stage2-good", *start).codes == [0]
    for file in ("projector.safetensors", "tokenizer.json", "chat_template.jinja"):
        flip(runs / "stage1" / file)
        refused = runs.run("stage2-bad", *start)
        flip(runs / "stage1" / file)
        assert refused.codes == [2]
        assert f"{file} is not what was written" in refused.text
        count(injected=1, survived=1)


def test_no_good_checkpoint_is_an_error_and_no_fresh_start(runs: Runs) -> None:
    assert runs.run("lost", "--stop_after_steps", "1").codes == [0]
    (runs / "lost" / "checkpoint-1" / "scheduler.pt").unlink()
    again = runs.run("lost")
    assert again.codes == [2]
    assert "has no good checkpoint left" in again.text
    assert "scheduler.pt is missing" in again.text
    assert (runs / "lost" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("limit", [10_000, 100_000, 300_000])
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(runs: Runs, whole: Path, limit: int) -> None:
    output = f"full-{limit}"
    stopped = runs.run(output, "--save_total_limit", "2", fault=f"full_disk:{limit}@3")
    assert stopped.codes == [2], stopped.text
    assert "Make room on the disk" in stopped.text
    assert "Traceback" not in stopped.text
    assert [path.name for path in checkpoint.checkpoints(runs / output)] == ["checkpoint-1", "checkpoint-2"]
    assert not (runs / output / checkpoint.STAGING).exists()
    again = runs.run(output, "--save_total_limit", "2")
    assert again.codes == [0], again.text
    equal = ended_like(whole, runs / output)
    count(injected=1, survived=1, equal=int(equal))
    assert equal


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("step", [3, 8])
def test_a_disk_that_fails_while_the_training_goes_on_ends_the_run(
    runs: Runs, whole: Path, step: int, ranks: int
) -> None:
    output = f"failing-{step}-{ranks}"
    flags = ["--save_total_limit", "2", "--save_steps", "1"]
    stopped = runs.run(output, *flags, ranks=ranks, fault=f"failing_disk:{step}")
    assert set(stopped.codes) == {2}, stopped.text
    assert "Input/output error. Make room on the disk, or mend it" in stopped.text
    assert f"the last checkpoint is {runs / output / f'checkpoint-{step - 1}'}" in stopped.text
    assert "Traceback" not in stopped.text
    assert not (runs / output / "metrics.json").exists()
    assert not (runs / output / checkpoint.STAGING).exists()  # nothing of it takes up room
    again = runs.run(output, *flags, ranks=ranks)
    assert set(again.codes) == {0}, again.text
    if ranks == 1:
        equal = ended_like(whole, runs / output)
        count(injected=1, survived=1, equal=int(equal))
        assert equal


def test_a_rank_that_breaks_leaves_once_the_first_one_has_completed_the_checkpoint(runs: Runs) -> None:
    """Torchrun ends all other ranks as soon as one has left."""
    run = runs.start("broken", *ZERO_2, ranks=2, fault="slow_disk:2,broken_rank:3")
    assert run.wait_for(1) == 1
    checkpoint.verify(runs / "broken" / "checkpoint-2")
    run.wait()
    assert "this rank alone is broken" in run.text
    count(injected=1, survived=1)


def test_a_disk_that_the_ranks_do_not_share_is_told_before_the_first_step(runs: Runs) -> None:
    refused = runs.run("node-1", ranks=2, fault=f"other_disk:{runs / 'node-2'}")
    assert set(refused.codes) == {2}, refused.text
    assert "Give an --output_dir on a disk that all nodes share" in refused.text
    assert not checkpoint.checkpoints(runs / "node-1")
    count(injected=1, survived=1)


def test_an_output_folder_serves_one_run_at_a_time(runs: Runs, whole: Path) -> None:
    first = runs.start("shared", "--save_total_limit", "2", fault="pause_at_step:3")
    assert wait_until((runs / "shared" / "checkpoint-2").exists), first.text
    second = runs.run("shared", "--save_total_limit", "2")
    assert second.codes == [2]
    assert f"in use by another run (process {first.processes[0]} " in second.text
    assert first.wait().codes == [0], first.text
    assert ended_like(whole, runs / "shared")
