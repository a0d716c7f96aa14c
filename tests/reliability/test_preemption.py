"""A signal that asks a run to end, on any rank: it saves within the step, says so, and continues to the same bits."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_sp.train import checkpoint
from llava_sp.train.events import read
from llava_sp.train.signals import SAVED_EXIT_CODE
from tests.reliability.counting import COUNTS
from tests.reliability.runs import ZERO_2, Runs, bits, steps_of
from tests.reliability.test_crashes import SOAK
from tests.train.test_benchmarks import make_benchmark

RARELY = ["--save_steps", "100", "--logging_steps", "3"]
"""No checkpoint but at the end, so that the signal alone is why there is one."""

FLAGS = {1: RARELY, 2: [*RARELY, *ZERO_2]}


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Callable[[int], Path]:
    """Runs that nothing happens to, by their number of ranks."""

    def get(ranks: int) -> Path:
        folder = runs / f"preempt-whole-{ranks}"
        if not folder.exists():
            done = runs.run(folder.name, *FLAGS[ranks], ranks=ranks)
            assert set(done.codes) == {0}, done.text
        return folder

    return get


def assert_stopped(folder: Path, name: str) -> int:
    """Asserts that a run has saved and stopped; returns the step."""
    saved = checkpoint.checkpoints(folder)
    assert len(saved) == 1
    checkpoint.verify(saved[0])
    assert not (folder / "llava_sp.json").exists()  # no result that looks complete
    assert not (folder / "metrics.json").exists()
    event = read(folder)[-1]
    assert (event["event"], event["signal"]) == ("preempted", name)
    assert saved[0].name == f"checkpoint-{event['step']}"
    return int(event["step"])


@pytest.mark.parametrize(
    ("name", "step", "ranks"), [("SIGTERM", 1, 1), ("SIGINT", 3, 1), ("SIGUSR1", 4, 2), ("SIGTERM", 8, 1)]
)
def test_a_signal_amid_a_step_saves_that_step(
    runs: Runs, whole: Callable[[int], Path], name: str, step: int, ranks: int
) -> None:
    before, output = whole(ranks), f"preempt-{name}-{step}"
    stopped = runs.run(output, *FLAGS[ranks], ranks=ranks, fault=f"signal_at_step:{name}@{step}")
    assert set(stopped.codes) == {SAVED_EXIT_CODE}, stopped.text
    assert stopped.text.count("the same command continues") == 1
    assert f"{name}: saved {runs / output}/checkpoint-{step}, after step {step} of" in stopped.text
    assert "Traceback" not in stopped.text
    assert assert_stopped(runs / output, name) == step
    again = runs.run(output, *FLAGS[ranks], ranks=ranks)
    assert set(again.codes) == {0}, again.text
    equal = bits(runs / output) == bits(before)
    COUNTS["faults injected"] += 1
    COUNTS["faults survived"] += 1
    COUNTS["runs ended with the bits of an undisturbed one"] += equal
    assert equal


@pytest.mark.parametrize("ranks", [1, 2])
def test_signals_at_random_moments_to_one_rank(runs: Runs, whole: Callable[[int], Path], ranks: int) -> None:
    before = whole(ranks)
    chosen = random.Random(ranks)  # noqa: S311
    output, left = "", SOAK or 2
    while left:
        output = f"preempt-random-{ranks}-{left}"
        run = runs.start(output, *FLAGS[ranks], ranks=ranks, fault=f"slow_steps:{0.15 * ranks}")
        # A rank that ends before that has nothing to save, and without a launcher the others would wait for it.
        assert run.tells("the first step begins", times=ranks), run.text
        time.sleep(chosen.uniform(0, 3))
        target = chosen.choice(range(ranks))
        os.kill(run.processes[target], signal.SIGTERM)
        run.wait()
        if set(run.codes) == {SAVED_EXIT_CODE}:
            assert assert_stopped(runs / output, "SIGTERM") >= 1
            left -= 1
            again = runs.run(output, *FLAGS[ranks], ranks=ranks)
            assert set(again.codes) == {0}, again.text
            equal = bits(runs / output) == bits(before)
            COUNTS["faults injected"] += 1
            COUNTS["faults survived"] += 1
            COUNTS["runs ended with the bits of an undisturbed one"] += equal
            assert equal
        else:  # all is done; without a launcher, the other rank may miss the one that is gone
            assert (runs / output / "metrics.json").is_file(), run.text
            assert run.codes[target] in (0, -signal.SIGTERM), run.text
        shutil.rmtree(runs / output)


@pytest.mark.parametrize(
    ("fault", "every", "step"),
    [
        ("signal_in_evaluation:SIGTERM", 2, 2),
        ("signal_at_step:SIGTERM@3", 3, 3),
        ("signal_in_evaluation:SIGTERM", 8, 8),  # the last step, after which the result is still to come
    ],
)
def test_a_signal_amid_an_evaluation_or_right_before_it_saves_at_once(
    runs: Runs, fault: str, every: int, step: int
) -> None:
    """The evaluation is not made, and the dropout and the log of the steps after it are what they would have been."""
    held_out = ["--eval_data_path", str(runs / "data.json"), "--eval_strategy", "steps", "--eval_steps", str(every)]
    flags, output = [*FLAGS[1], *held_out, "--per_device_eval_batch_size", "2"], f"preempt-eval-{every}"
    stopped = runs.run(output, *flags, fault=fault)
    assert stopped.codes == [SAVED_EXIT_CODE], stopped.text
    assert assert_stopped(runs / output, "SIGTERM") == step
    whole, again = runs.run(f"{output}-whole", *flags), runs.run(output, *flags)
    assert whole.codes == again.codes == [0], again.text
    assert bits(runs / output) == bits(runs / f"{output}-whole")
    assert steps_of(runs / output) == steps_of(runs / f"{output}-whole")
    metrics = [json.loads((runs / name / "metrics.json").read_text()) for name in (output, f"{output}-whole")]
    for name in ("steps", "train_loss", "eval_loss"):
        assert metrics[0][name] == metrics[1][name]


@pytest.mark.parametrize("every", [4, 8])
def test_a_signal_to_one_rank_ends_the_benchmarks_on_all(runs: Runs, every: int) -> None:
    """At once: a machine that is to go does not wait for the answers of others."""
    if not (runs / "eval").exists():
        make_benchmark(runs / "eval")
    asked = ["--eval_benchmarks", "tiny", "--eval_data_root", str(runs / "eval"), "--eval_benchmark_steps", str(every)]
    flags, output = [*FLAGS[2], *asked, "--per_device_eval_batch_size", "1"], f"preempt-benchmark-{every}"
    stopped = runs.run(output, *flags, ranks=2, fault="signal_in_benchmark:SIGTERM")
    assert set(stopped.codes) == {SAVED_EXIT_CODE}, stopped.text
    assert assert_stopped(runs / output, "SIGTERM") == every
    whole, again = runs.run(f"{output}-whole", *flags, ranks=2), runs.run(output, *flags, ranks=2)
    assert set(whole.codes) == set(again.codes) == {0}, again.text
    assert bits(runs / output) == bits(runs / f"{output}-whole")
    history = json.loads((runs / output / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "eval_tiny_mean" in line] == [8]


def test_the_log_has_the_mean_of_all_steps(runs: Runs) -> None:
    """Also where a checkpoint falls between two lines of the log."""
    runs.run("log-cut", *FLAGS[1], fault="signal_at_step:SIGTERM@4")
    assert runs.run("log-cut", *FLAGS[1]).codes == [0]
    assert [line["step"] for line in steps_of(runs / "log-cut")] == [3, 4, 6, 8]
