"""How the launcher passes signals on, tells of what ended a rank or itself, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from llava_sp.utils.errors import UserError
from llava_sp.utils.ranks import PATIENCE, run_torchrun, stop_signals
from tests.reliability.runs import AT_MOST, wait_until


@pytest.mark.parametrize(
    ("ended", "told"),
    [(signal.SIGKILL, "Rank 0 was ended from outside by SIGKILL. Mend it."),
     (signal.SIGABRT, "Rank 0 crashed with SIGABRT. Mend it.")],
)  # fmt: skip
def test_a_crash_is_told_apart_from_an_end_from_outside(tmp_path: Path, ended: signal.Signals, told: str) -> None:
    script = tmp_path / "rank.sh"
    script.write_text(f"kill -{ended.value} $$")
    with pytest.raises(UserError) as error:
        run_torchrun(["--nproc_per_node=1", "--standalone", "--no-python", "/bin/sh", str(script)], mend="Mend it.")
    assert str(error.value) == told


def test_a_crash_ends_the_other_ranks_which_cannot_save_any_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "rank.sh"
    script.write_text(
        f"""
if [ $RANK = 0 ]; then  # once the other one could tell of a SIGTERM
    for _ in $(seq 12000); do [ -e '{tmp_path}/ready' ] && exit 3; sleep 0.05; done
    exit 4
fi
trap 'echo asked to save' TERM
touch '{tmp_path}/ready'
while :; do sleep 0.05; done
"""
    )
    ranks = ["--nproc_per_node=2", "--standalone", "--no-python", "/bin/sh", str(script)]
    assert run_torchrun(ranks, mend="") == 3
    assert capfd.readouterr().out == ""


LAUNCHER = """
import sys
from llava_sp.utils.errors import command_line
from llava_sp.utils.ranks import run_torchrun

ranks = ["--nproc_per_node=2", "--standalone", "--no-python", *sys.argv[1:]]
command_line(lambda: sys.exit(run_torchrun(ranks, mend="")))()
"""


class Launched:
    """A launcher whose two ranks run, each a script.

    Args:
        folder: Where the ranks note that they run.
        interpreter: What runs the script.
        script: What a rank does after it has noted that it runs.
    """

    def __init__(self, folder: Path, interpreter: str, script: str) -> None:
        (folder / "rank").write_text(script)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, interpreter, folder / "rank"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.folder = folder
        self.ranks: list[psutil.Process] = []

    def wait(self) -> None:
        """Waits until the ranks run."""
        notes = [self.folder / f"runs-{rank}" for rank in range(2)]
        wait_until(lambda: self.process.poll() is not None or all(note.exists() for note in notes))
        assert self.process.poll() is None
        self.ranks = psutil.Process(self.process.pid).children()
        assert all(note.exists() for note in notes)

    def signal(self, sent: signal.Signals) -> None:
        self.process.send_signal(sent)

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and the output. No rank is left."""
        told, _ = self.process.communicate(timeout=AT_MOST)
        assert psutil.wait_procs(self.ranks, timeout=60)[1] == []
        return self.process.returncode, told


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts a launcher; whatever a test does, its ranks end."""
    started: list[Launched] = []

    def launch(script: str, interpreter: str = "/bin/sh") -> Launched:
        started.append(Launched(tmp_path, interpreter, script))
        started[-1].wait()
        return started[-1]

    yield launch
    for launched in started:
        for process in (launched.process, *launched.ranks):
            with suppress(psutil.NoSuchProcess):
                process.kill()


WAITS = "touch runs-$RANK\nwhile :; do sleep 0.05; done\n"
SAVES = "trap 'echo saved by rank $RANK; exit 75' TERM USR1 INT\n" + WAITS


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_save_when_the_launcher_is_asked_to_end(launch: Callable[..., Launched], sent: signal.Signals) -> None:
    launched = launch(SAVES)
    launched.signal(sent)
    code, told = launched.end()
    assert code == 75
    # The shell may remark that its `sleep` was ended, when torchrun closes the rank that leaves last.
    assert sorted(set(told.splitlines()) - {"Terminated"}) == ["saved by rank 0", "saved by rank 1"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_ranks_that_take_their_time(launch: Callable[..., Launched], sent: signal.Signals) -> None:
    launched = launch(f"trap '' {sent.value}\n{WAITS}")
    launched.signal(sent)
    launched.signal(sent)  # at once: the same request by another way
    time.sleep(PATIENCE + 0.2)
    alive = launched.ranks
    assert all(rank.is_running() for rank in alive)
    for _ in range(12):  # again and again, for the launcher may have noticed the first ones late
        launched.signal(sent)
        if not (alive := psutil.wait_procs(alive, timeout=5)[1]):
            break
    code, told = launched.end()
    assert code == 128 + sent
    assert ("interrupted" if sent == signal.SIGINT else "by SIGTERM") in told


@pytest.mark.parametrize(
    ("ended", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "by SIGTERM")]
)
def test_an_interrupted_launcher_says_so_in_a_line(tmp_path: Path, ended: signal.Signals, code: int, told: str) -> None:
    """The signal may come while the launcher is still about to start the second rank."""
    script = tmp_path / "rank.sh"
    script.write_text(f"kill -{ended.value} $PPID\nexec tail -f /dev/null")  # waits until it is ended
    command = [sys.executable, "-c", LAUNCHER, "/bin/sh", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=AT_MOST)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_end_with_a_launcher_that_is_killed(launch: Callable[..., Launched]) -> None:
    launched = launch(
        """
import os, time
from llava_sp.utils.ranks import end_with_launcher

end_with_launcher()
open(f"runs-{os.environ['RANK']}", "w").close()
time.sleep(600)
""",
        sys.executable,
    )
    launched.signal(signal.SIGKILL)
    assert launched.end()[0] == -signal.SIGKILL


def test_signals_that_are_ignored_stay_ignored() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(lambda number, frame: heard.append(number)):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("command", ["llava_sp.train.launch", "llava_sp.eval.model_vqa"])
def test_a_command_ends_with_what_started_it(command: str) -> None:
    """As with the quickstart; here, whatever started it is gone already."""
    environment = {**os.environ, "LLAVA_SP_LAUNCHER": "1"}
    started = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(started, env=environment, check=False, capture_output=True, timeout=AT_MOST)
    assert done.returncode == -signal.SIGKILL
