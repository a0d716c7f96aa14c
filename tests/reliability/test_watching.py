"""A run that stops moving ends and says where; a loss that jumps is told once."""

import os
import signal

import pytest

from llava_sp.train.events import read
from llava_sp.train.watchdog import STALLED
from tests.reliability.counting import COUNTS
from tests.reliability.runs import ZERO_2, Runs

LIMIT = 4  # seconds


@pytest.mark.parametrize(
    ("what", "ranks", "flags"), [("sleep", 2, ZERO_2), ("sleep", 2, []), ("loader", 1, []), ("stopped", 2, ZERO_2)]
)
def test_a_rank_that_stops_ends_the_run_and_is_named(runs: Runs, what: str, ranks: int, flags: list[str]) -> None:
    output = f"stalled-{what}-{ranks}-{bool(flags)}"
    stopped = runs.start(output, *flags, "--stall_timeout", str(LIMIT), ranks=ranks, fault=f"stall:{what}@3")
    assert stopped.wait_for(0) == STALLED, stopped.text
    if what == "stopped":  # the launcher would end the rank that is stopped from outside; here the test does
        os.kill(stopped.processes[1], signal.SIGKILL)
        assert stopped.wait().codes == [STALLED, -signal.SIGKILL], stopped.text
    else:
        assert stopped.wait().codes == [STALLED] * ranks, stopped.text
        assert (runs / output / f"stalled-rank-{ranks - 1}.txt").is_file()
        assert "faults.py" in (runs / output / f"stalled-rank-{ranks - 1}.txt").read_text()
    assert ("Rank 1" if ranks > 1 else "The run") in stopped.text
    assert "step 3" in stopped.text
    (event,) = [event for event in read(runs / output) if event["event"] == "stalled"]
    assert (event["ranks"], event["step"]) == ([ranks - 1], 3)
    again = runs.run(output, *flags, ranks=ranks)
    assert set(again.codes) == {0}, again.text
    COUNTS["faults injected"] += 1
    COUNTS["faults survived"] += 1


@pytest.mark.parametrize("step", [30, None])
def test_a_loss_that_jumps_is_one_event_and_none_otherwise(runs: Runs, step: int | None) -> None:
    output = f"spike-{step}"
    flags = ["--num_train_epochs", "10", "--save_steps", "35"]
    done = runs.run(output, *flags, fault=f"spike:50@{step}" if step else "")
    assert done.codes == [0], done.text
    spikes = [event for event in read(runs / output) if event["event"] == "loss_spike"]
    assert [event["step"] for event in spikes] == ([step] if step else [])
    COUNTS["faults injected"] += step is not None
    COUNTS["faults survived"] += len(spikes)


def test_a_run_that_is_cut_tells_the_same_spikes(runs: Runs) -> None:
    """What is usual for the loss is remembered in the checkpoint."""
    flags = ["--num_train_epochs", "10", "--save_steps", "28"]
    assert runs.run("spike-cut", *flags, "--stop_after_steps", "28").codes == [0]
    assert runs.run("spike-cut", *flags, fault="spike:50@30").codes == [0]
    spikes = [event for event in read(runs / "spike-cut") if event["event"] == "loss_spike"]
    assert [event["step"] for event in spikes] == [30]
