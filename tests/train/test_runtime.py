"""How a rank ends, and what it needs before it starts."""

import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from llava_sp.train import runtime
from llava_sp.train.signals import SAVED_EXIT_CODE, Preempted
from llava_sp.utils.errors import UserError

Told = tuple[int | str | None, str]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Ends as a rank by an error; returns the exit code and what it wrote."""

    def fail(error: Exception | type[Exception], **environment: str) -> Told:
        @runtime.training_command
        def main() -> None:
            raise error

        for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return fail


MISTAKE = UserError("no such thing")


def test_a_users_mistake_is_one_line(fail: Callable[..., Told]) -> None:
    assert fail(MISTAKE) == (2, "error: no such thing\n")


def test_our_own_mistake_keeps_its_traceback(fail: Callable[..., Told]) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError)


def test_a_saved_run_says_so_in_a_line_on_the_first_rank(
    fail: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(runtime, "out", told.append)
    stop = Preempted(signal.SIGTERM, Path("out/checkpoint-12"), 12, 32)
    assert fail(stop, RANK="1", WORLD_SIZE="2") == fail(stop, RANK="0", WORLD_SIZE="2") == (SAVED_EXIT_CODE, "")
    assert told == ["SIGTERM: saved out/checkpoint-12, after step 12 of 32; the same command continues"]


@pytest.mark.parametrize("first", [0, 1])
def test_a_mistake_is_told_once_on_a_node_whichever_rank_meets_it_first(
    fail: Callable[..., Told], tmp_path: Path, first: int
) -> None:
    def of_rank(rank: int) -> Told:
        (tmp_path / str(rank)).mkdir()
        own = str(tmp_path / str(rank) / "error.json")
        return fail(MISTAKE, RANK=str(rank), WORLD_SIZE="2", TORCHELASTIC_ERROR_FILE=own)

    assert of_rank(first) == (2, f"error: no such thing{' [rank 1]' if first else ''}\n")
    assert of_rank(1 - first) == (2, "")


def test_without_torchrun_each_rank_speaks_for_itself(fail: Callable[..., Told]) -> None:
    assert fail(MISTAKE, RANK="3", WORLD_SIZE="4") == (2, "error: no such thing [rank 3]\n")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, on the CPU."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_ranks_on_the_cpu_agree_there_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    runtime.agree(None)
    with pytest.raises(UserError, match="no such thing"):
        runtime.agree(MISTAKE)


@pytest.mark.usefixtures("group")
def test_ranks_wait_for_the_first_without_a_limit_of_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[timedelta] = []

    class Store:
        def wait(self, keys: list[str], timeout: timedelta) -> None:
            waited.append(timeout)

    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", Store)
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    runtime.on_first_rank(lambda: pytest.fail("this is the first rank's"))
    assert waited[0] > timedelta(days=1)


def test_deepspeed_builds_no_kernel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed while it builds one would leave a lock that all later ones wait for."""
    operations = pytest.importorskip("deepspeed").ops.__compatible_ops__
    monkeypatch.setitem(operations, "deepspeed_shm_comm", True)
    monkeypatch.setenv("RANK", "0")
    runtime.prepare_process(deepspeed=True, use_cpu=True)
    assert operations["deepspeed_shm_comm"] is False


def test_a_process_alone_listens_to_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    runtime.prepare_process(deepspeed=True, use_cpu=True)
    dist.init_process_group("gloo")
    try:
        listening = [one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"]
    finally:
        dist.destroy_process_group()
    assert set(listening) == {"127.0.0.1"}


def test_several_gpus_for_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="4 GPUs are visible to a single process"):
        runtime.prepare_process(deepspeed=False, use_cpu=False)
