"""The processes of a run: which one this is, and starting several of them on a machine."""

import logging
import os
import signal

import torch
import torch.distributed as dist

from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals by which a process ends itself."""


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


def run_torchrun(arguments: list[str], *, mend: str) -> int:
    """Runs torchrun in this process; returns the exit code of the rank that failed first, or 0.

    Args:
        arguments: Torchrun's own, then the module and its arguments.
        mend: What to do if a rank is ended from outside, for the error.

    Raises:
        UserError: A rank was ended by a signal.
        KeyboardInterrupt: Somebody pressed Ctrl-C; the ranks are ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
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
    try:
        main(arguments)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        logger.warning("Ended from outside by %s, and all ranks with it.", signal.Signals(error.sigval).name)
        return 128 + error.sigval
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode < 0:
            ended = signal.Signals(-failure.exitcode)
            how = "crashed with" if ended in CRASHES else "was ended from outside by"
            raise UserError(f"Rank {failed} {how} {ended.name}. {mend}") from None
        return failure.exitcode
    return 0
