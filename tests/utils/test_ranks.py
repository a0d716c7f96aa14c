"""How the launcher tells of a signal that ended a rank, or itself."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_sp.utils.errors import UserError
from llava_sp.utils.ranks import run_torchrun


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


LAUNCHER = """
import sys
from llava_sp.utils.errors import command_line
from llava_sp.utils.ranks import run_torchrun

ranks = ["--nproc_per_node=1", "--standalone", "--no-python", "/bin/sh", sys.argv[1]]
command_line(lambda: sys.exit(run_torchrun(ranks, mend="")))()
"""


@pytest.mark.parametrize(
    ("ended", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "by SIGTERM")]
)
def test_an_interrupted_launcher_says_so_in_a_line(tmp_path: Path, ended: signal.Signals, code: int, told: str) -> None:
    script = tmp_path / "rank.sh"
    script.write_text(f"kill -{ended.value} $PPID\nexec tail -f /dev/null")  # waits until it is ended
    done = subprocess.run([sys.executable, "-c", LAUNCHER, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
