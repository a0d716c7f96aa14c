"""The processes of a run: which one this is, and starting several of them on a machine."""

import ctypes
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist

from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals by which a process ends itself."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to end: from a user, a closing terminal, or a scheduler such as SLURM."""

PATIENCE = 1.0
"""Seconds within which the same request may arrive twice, say from the terminal and from a wrapper around the run."""

Handler = Callable[[int, FrameType | None], None]

LAUNCHER = "LLAVA_SP_LAUNCHER"
"""Environment variable by which a rank knows the process that started it."""


def rank() -> int:
    """Number of this process among those of the run, from 0, as the launcher set it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of this run, as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the first rank."""
    return rank() == 0


def in_group() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def collective_device() -> str:
    """Device of what this process sends to the others."""
    return "cuda" if "nccl" in dist.get_backend() else "cpu"


def count_processes(wanted: int | None, *, use_cpu: bool, cpu_flag: str = "--use_cpu") -> int:
    """Returns the number of processes for this node: as many as wanted, else one per GPU.

    Args:
        wanted: What `--nproc_per_node` says.
        use_cpu: Whether the GPUs are left alone.
        cpu_flag: The flag that leaves them alone, for the error.

    Raises:
        UserError: More processes are wanted than there are GPUs.
    """
    gpus = 0 if use_cpu else torch.cuda.device_count()
    if wanted is not None and wanted < 1:
        raise UserError(f"--nproc_per_node must be at least 1, not {wanted}.")
    if gpus == 0:
        logger.info("No GPU is used: %d process(es) on the CPU.", wanted or 1)
        return wanted or 1
    if wanted is not None and wanted > gpus:
        raise UserError(
            f"--nproc_per_node {wanted}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}; ask for at most "
            f"{gpus}, or use the CPU with {cpu_flag}."
        )
    return wanted or gpus


def local_store() -> dist.TCPStore:
    """Opens the store by which the processes of one machine meet, and keeps what they send each other on it.

    Torch's own store listens on all interfaces of the machine; this one on the loopback interface alone. It lasts as
    long as somebody holds it, and whoever hosts a store at its port in this process shares it.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")  # without the sign it would be a prefix
    listening = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    return dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=listening.detach()
    )


@contextmanager
def stop_signals(handler: Handler) -> Iterator[None]:
    """Lets `handler` take the stop signals, see `take_stop_signals`."""
    before = take_stop_signals(handler)
    try:
        yield
    finally:
        give_back_signals(before)


def take_stop_signals(handler: Handler) -> dict[signal.Signals, Any]:
    """Lets `handler` take the stop signals; those that are ignored stay so, as SIGHUP does under `nohup`.

    Returns:
        What took them before, for `give_back_signals`.
    """
    before = {one: signal.getsignal(one) for one in STOP_SIGNALS}
    before = {one: old for one, old in before.items() if old not in (signal.SIG_IGN, None)}
    for one in before:
        signal.signal(one, handler)
    return before


def give_back_signals(before: dict[signal.Signals, Any]) -> None:
    """Lets take signals what took them before."""
    for one, old in before.items():
        signal.signal(one, old)


class _Relay:
    """Passes stop signals on to the ranks, which save or end; asked once more, it ends them at once.

    Torchrun's own handlers would raise within whatever it does, leave a rank behind that it was about to start, and
    give the others half a minute.
    """

    def __init__(self) -> None:
        self.last: signal.Signals | None = None
        self._asked: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        self.last = signal.Signals(number)
        ranks = [child.pid for child in psutil.Process().children() if os.getsid(child.pid) == child.pid]
        if not ranks:
            raise SignalException(f"{self.last.name} while no rank runs", self.last)
        again = False
        if number in (signal.SIGINT, signal.SIGTERM):
            now = time.monotonic()
            self._asked = self._asked or now
            again = now - self._asked >= PATIENCE
        for one in ranks:
            with suppress(ProcessLookupError):
                if again:
                    os.killpg(one, signal.SIGKILL)
                else:
                    os.kill(one, number)

    def closing_signal(self) -> signal.Signals:
        """Signal by which torchrun ends the other ranks once one has left.

        Unless all were asked to save, one has crashed. The others would save at SIGTERM, which they cannot without it.
        """
        return signal.SIGKILL if self.last is None else signal.SIGTERM


def run_torchrun(arguments: list[str], *, mend: str) -> int:
    """Runs torchrun in this process; returns the exit code of the rank that failed first, or 0.

    A stop signal goes on to the ranks, which may take their time to save; a second SIGINT or SIGTERM ends them.

    Args:
        arguments: Torchrun's own, then the module and its arguments. With `--standalone`, the ranks meet by loopback.
        mend: What to do if a rank is ended from outside, for the error.

    Raises:
        UserError: A rank was ended by a signal.
        KeyboardInterrupt: Somebody pressed Ctrl-C, and the ranks ended by it.
    """
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    if "--nproc_per_node=1" not in arguments:
        # On the CPU, ranks that all take every core slow each other down. One thread is torchrun's default too, but
        # unless it is told it announces that by a banner.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warn when data workers are forked
    # The rank that failed has said what went wrong; torchrun's report of that would bury it.
    for talkative in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{talkative}").setLevel(logging.CRITICAL)
    if "--standalone" in arguments:
        store = local_store()
        place = [f"--master_addr={store.host}", f"--master_port={store.port}"]
        arguments = [*place, *(one for one in arguments if one != "--standalone")]
    relay = _Relay()
    api._get_default_signal = relay.closing_signal
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        with stop_signals(relay):
            main(["--signals_to_handle=SIGQUIT", *arguments])
    except api.SignalException as error:
        return _ended_by(error.sigval)
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        if relay.last is not None:
            return _ended_by(relay.last)
        ended = signal.Signals(-failure.exitcode)
        how = "crashed with" if ended in CRASHES else "was ended from outside by"
        raise UserError(f"Rank {failed} {how} {ended.name}. {mend}") from None
    finally:
        del os.environ[LAUNCHER]
    return 0


def _ended_by(ended: signal.Signals) -> int:
    """Tells that a run was ended from outside; returns the exit code that shells have for it."""
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    logger.warning("Ended from outside by %s, and all ranks with it.", ended.name)
    return 128 + ended


def end_with_launcher() -> None:
    """Has the kernel end this rank if its launcher is killed; whatever launches it otherwise looks after it."""
    if launcher := os.environ.pop(LAUNCHER, None):
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it is gone already
            os.kill(os.getpid(), signal.SIGKILL)
