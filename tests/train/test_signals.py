"""A signal to any rank, or to the launcher, ends a training on all of them in order; nothing listens to the network."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from llava_sp.train import signals
from llava_sp.train.signals import SAVED_EXIT_CODE, Preempted, StopSignals
from llava_sp.utils.ranks import STOP_SIGNALS
from tests.reliability.runs import AT_MOST, wait_until

ROOT = Path(__file__).parents[2]


def test_signals_are_remembered_and_change_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    with StopSignals() as stop:
        assert stop.received is None
        for sent in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(sent)
        assert stop.received == stop.agreed() == signal.SIGUSR1
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before
    assert capfd.readouterr().err == "\nSIGUSR1: a checkpoint is saved after this step\n"


def test_ctrl_c_again_after_a_while_is_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        now[0] += signals.PATIENCE
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_who_leaves_with_all_saved_is_not_ended_on_the_way() -> None:
    before = {one: signal.getsignal(one) for one in STOP_SIGNALS}
    try:
        with pytest.raises(Preempted), StopSignals() as stop:
            raise Preempted(signal.SIGUSR1, Path("out/checkpoint-1"), 1, 4)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        del stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    with StopSignals() as other:
        gc.collect()  # what is no longer in use undoes nothing
        signal.raise_signal(signal.SIGTERM)
        assert other.received == signal.SIGTERM


def test_a_data_worker_leaves_the_signal_to_its_rank(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as stop:
        worker = os.fork()
        if worker == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(0 if stop.received is None else 1)
        assert os.waitpid(worker, 0)[1] == 0
    assert capfd.readouterr().err == ""


def test_a_rank_agrees_with_itself(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with StopSignals() as stop:
            assert stop.agreed() is None
            signal.raise_signal(signal.SIGTERM)
            assert stop.agreed() is signal.SIGTERM
    finally:
        dist.destroy_process_group()


RANK = """
import time
from pathlib import Path

import torch.distributed as dist

from llava_sp.train.runtime import training_command
from llava_sp.train.signals import Preempted, StopSignals


@training_command
def main() -> None:
    dist.init_process_group("gloo")
    with StopSignals() as stop:
        Path(f"runs-{dist.get_rank()}").touch()
        for step in range(1, 5000):
            time.sleep(0.01)
            if by := stop.agreed():
                raise Preempted(by, Path("out/checkpoint-1"), 1, 4)


main()
"""

LAUNCHER = """
import sys

from llava_sp.train.launch import read_launcher_flags, run_torchrun, torchrun_arguments

flags, _ = read_launcher_flags([])
sys.exit(run_torchrun([*torchrun_arguments(flags, 2), "rank.py"], mend=""))
"""


def test_all_ranks_leave_once_one_is_asked_to(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        notes = [tmp_path / f"runs-{rank}" for rank in range(2)]
        assert wait_until(lambda: launcher.poll() is not None or all(note.exists() for note in notes))
        assert launcher.poll() is None
        processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children()]
        listening = [each for one in processes for each in one.net_connections("inet") if each.status == "LISTEN"]
        next(one for one in processes[1:] if one.environ()["RANK"] == "1").send_signal(signal.SIGTERM)
        told, _ = launcher.communicate(timeout=AT_MOST)
    finally:
        launcher.kill()
    assert launcher.returncode == SAVED_EXIT_CODE, told
    assert told == "SIGTERM: saved out/checkpoint-1, after step 1 of 4; the same command continues\n"
    assert psutil.wait_procs(processes[1:], timeout=60)[1] == []
    assert listening
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
