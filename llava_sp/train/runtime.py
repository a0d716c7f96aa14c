"""The processes of a run: ranks, what DeepSpeed needs, and how a process ends without a hang or a stray signal."""

import functools
import itertools
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import transformers

from llava_sp.train.signals import SAVED_EXIT_CODE, Preempted
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import setup_logging
from llava_sp.utils.ranks import (
    collective_device,
    end_with_launcher,
    in_group,
    is_main,
    local_store,
    rank,
    world_size,
)

T = TypeVar("T")

_turns = itertools.count()
"""Numbers the times that ranks wait for the first one, alike on all of them."""

_stores: list[dist.Store] = []
"""Holds the store of a process alone until its group does."""


def agree(error: UserError | None) -> None:
    """Raises on all ranks if some rank met an error, so that they stop together and none waits for another.

    Args:
        error: What this rank met, or None. A collective call.

    Raises:
        UserError: What the first rank met that met something.
    """
    if error is not None and not in_group():
        raise error
    if messages := gather([] if error is None else [str(error)]):
        raise UserError(messages[0]) from error


def gather(items: list[T]) -> list[T]:
    """Joins the lists of all ranks, in their order; where all are empty, that takes one number's reduction.

    Args:
        items: What this rank has, of any type that can be pickled. A collective call.
    """
    if not in_group():
        return items
    found = torch.tensor(float(bool(items)), device=collective_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    if not found.item():
        return []
    lists: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return list(itertools.chain.from_iterable(lists))


def on_first_rank(work: Callable[[], T]) -> T:
    """Does something on the first rank while the others wait; returns its result on all ranks, or raises its error.

    The others wait at the store by which the ranks met, as long as it takes: a check of all data may take hours, and
    a collective gives up after `--ddp_timeout`.
    """
    error = None
    result: list[Any] = [None]
    if is_main():
        try:
            result = [work()]
        except UserError as caught:
            error = caught
    if in_group():
        store, done = dist.distributed_c10d._get_default_store(), f"llava_sp/first_rank/{next(_turns)}"
        if is_main():
            store.set(done, "")
        else:
            store.wait([done], timedelta(days=30))
    agree(error)
    if in_group():
        dist.broadcast_object_list(result)
    return result[0]


def training_command(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps the entry point of a rank: one line for what a user can cause, and an orderly end of all ranks."""

    @functools.wraps(main)
    def run() -> None:
        end_with_launcher()
        setup_logging()
        try:
            main()
        except UserError as error:
            tell(error)
            leave(2)
        except Preempted as stop:
            if is_main():
                out(str(stop))
            leave(SAVED_EXIT_CODE)
        except KeyboardInterrupt:
            leave(130)
        leave(0)

    return run


def tell(error: UserError) -> None:
    """Shows an error once per node: the rank that meets it first does, for mostly all of them meet the same.

    Torchrun gives the ranks of a node a folder in common; without it, each rank speaks for itself.
    """
    if own := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        try:
            (Path(own).parents[1] / "told").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # told twice is better than not at all
    sys.stderr.write(f"error: {error}{f' [rank {rank()}]' if rank() else ''}\n")


def leave(code: int) -> None:
    """Ends this process with `code`; at success, or with all saved, only once all ranks are through.

    The threads of gloo, by which ranks talk on the CPU, can abort a process while the interpreter shuts down, after all
    work is done. With several ranks the process therefore leaves at once when everything is flushed.
    """
    gloo = in_group() and "gloo" in dist.get_backend()
    if in_group() and code in (0, SAVED_EXIT_CODE):
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if world_size() > 1 and gloo:
        os._exit(code)
    sys.exit(code)


def prepare_process(*, deepspeed: bool, use_cpu: bool) -> None:
    """Sets up what must be in place before the training arguments touch the device.

    Raises:
        UserError: DeepSpeed is asked for but not installed, or this one process sees several GPUs.
    """
    if not use_cpu and world_size() == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to a single process. Start one process per GPU with "
            "'python -m llava_sp.train.launch' in place of 'python -m llava_sp.train', or choose one GPU by "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if not is_main():
        transformers.utils.logging.disable_progress_bar()
    if use_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    if deepspeed:
        _prepare_deepspeed(use_cpu)


def _prepare_deepspeed(use_cpu: bool) -> None:
    # DeepSpeed looks for ninja on the PATH, for the optimizer of --deepspeed configs/zero3_offload.json; it lies beside
    # the interpreter also where the environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "--deepspeed is given, but DeepSpeed is not installed: pip install -e '.[train]', or leave it out."
        ) from None
    if use_cpu:
        # Its shared-memory kernel is built on first use, and a run killed meanwhile leaves a lock that all later runs
        # would wait for. Gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if world_size() == 1 and "RANK" not in os.environ:
        # DeepSpeed wants a process group also for one process.
        _stores.append(store := local_store())
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=store.host, MASTER_PORT=str(store.port))
