"""The audit tells what is known apart from what cannot be known here."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
HOLED = {"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-1", "aliases": ["GHSA-1"], "fix_versions": ["9.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([CLEAN], 0, "1 packages audited, 0 known vulnerabilities"),
        ([CLEAN, HOLED], 1, "pillow 9.0: CVE-1, GHSA-1; fixed in 9.1"),
        ([CLEAN, UNKNOWN], 0, "not audited, as unknown to PyPI: torch"),
        ([UNKNOWN], 3, "offline: "),
        (None, 3, "offline: "),
    ],
)
def test_the_exit_code_says_what_is_known(found: list | None, code: int, says: str, tmp_path: Path) -> None:
    audit = tmp_path / "pip-audit"
    answer = "" if found is None else json.dumps({"dependencies": found})
    audit.write_text(f"#!/bin/sh\ncp \"$2\" {tmp_path}/asked\necho '{answer}'\nexit 1\n")
    audit.chmod(0o755)
    environment = {**os.environ, "PIP_AUDIT": str(audit)}
    command = ["bash", "scripts/audit.sh", *(["--lowest"] if code == 1 else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert any(line.startswith("torch==2.") for line in asked)
    assert all("+" not in line and not line.startswith("llava") for line in asked)
