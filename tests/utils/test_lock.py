"""A folder has one user at a time."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_sp.utils.errors import UserError
from llava_sp.utils.lock import locked

HOLD = """
import os, sys
from pathlib import Path
from llava_sp.utils.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    child = os.fork()  # as a data loader's worker, which may outlive a process that is killed
    if child == 0:
        os.execvp("sleep", ["sleep", "60"])
    print(child, flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    child = int(holder.stdout.readline())
    with pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid} on "), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    try:
        with locked(tmp_path):
            pass
        with locked(tmp_path):
            pass
    finally:
        subprocess.run(["kill", "-9", str(child)], check=True)


def test_a_disk_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        pass
    assert "is on a disk without locks" in caplog.text
