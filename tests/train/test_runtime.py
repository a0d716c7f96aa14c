"""How a rank ends, and what it needs before it starts."""

import subprocess
import sys

import pytest

from llava_sp.train import runtime
from llava_sp.utils.errors import UserError


def run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"from llava_sp.train.runtime import *\n@training_command\ndef main():\n    {body}\nmain()\n"
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_a_users_mistake_is_one_line() -> None:
    result = run("raise UserError('no such thing')")
    assert (result.returncode, result.stderr.strip()) == (2, "error: no such thing")


def test_our_own_mistake_keeps_its_traceback() -> None:
    result = run("raise ZeroDivisionError")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_mistake_met_by_all_ranks_is_told_by_the_first() -> None:
    result = run("raise UserError('no such thing')", RANK="1", WORLD_SIZE="2")
    assert (result.returncode, result.stderr.strip()) == (2, "")


def test_a_mistake_met_by_one_rank_is_told_by_that_rank() -> None:
    result = run("raise RankError('broken image')", RANK="1", WORLD_SIZE="2")
    assert (result.returncode, result.stderr.strip()) == (2, "error: broken image")


def test_deepspeed_builds_no_kernel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed while it builds one would leave a lock that all later ones wait for."""
    operations = pytest.importorskip("deepspeed").ops.__compatible_ops__
    monkeypatch.setitem(operations, "deepspeed_shm_comm", True)
    monkeypatch.setenv("RANK", "0")
    runtime.prepare_process(deepspeed=True, use_cpu=True)
    assert operations["deepspeed_shm_comm"] is False


def test_several_gpus_for_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="4 GPUs are visible to a single process"):
        runtime.prepare_process(deepspeed=False, use_cpu=False)
