"""`scripts/environment.sh`, which users source too: what fails leaves their shell open, and is no installation."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) exit $TOO_OLD ;;
    --version) echo "Python 3.11.0" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "PATH=$3/bin:$PATH" >"$3/bin/activate" ;;
    "-m pip "*) case "$*" in *"$FAILS"*) exit 1 ;; esac ;;
    *) exit 1 ;;  # it has no PyTorch
esac
"""
"""An interpreter that makes environments which it installs nothing into."""


def source(folder: Path, *, too_old: bool = False, fails: str = "nothing", before: str = "") -> tuple[int, str]:
    """Sources the script in a shell that then prints the status; returns the shell's own status and output."""
    interpreter = folder / "python"
    interpreter.write_text(PYTHON)
    interpreter.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(interpreter), "VENV": str(folder / "venv")}
    done = subprocess.run(
        ["bash", "-c", f"{before}\nsource scripts/environment.sh\necho it returned $?"],
        env={**environment, "TOO_OLD": str(int(too_old)), "FAILS": fails},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("fails", ["torch==", ".[dev]"])
def test_what_is_not_installed_is_not_taken_for_installed(fails: str, tmp_path: Path) -> None:
    code, printed = source(tmp_path, fails=fails)
    assert (code, printed.splitlines()[-1]) == (0, "it returned 1")
    assert not (tmp_path / "venv" / "installed-for").exists()
    assert source(tmp_path)[1].endswith("it returned 0\n")
    assert "fits, reused" in source(tmp_path)[1]


def test_an_old_python_is_refused_and_the_shell_goes_on(tmp_path: Path) -> None:
    assert source(tmp_path, too_old=True) == (0, "it returned 2\n")


@pytest.mark.parametrize(("failure", "status"), [({"too_old": True}, 2), ({"fails": ".[dev]"}, 1)])
def test_scripts_stop_there(failure: dict, status: int, tmp_path: Path) -> None:
    code, printed = source(tmp_path, before="set -euo pipefail", **failure)
    assert code == status
    assert "it returned" not in printed
