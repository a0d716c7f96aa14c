"""Signals that ask a training to end: it saves a checkpoint first, on all ranks, and the same command continues."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from llava_sp.utils.ranks import (
    PATIENCE,
    collective_device,
    give_back_signals,
    in_group,
    is_main,
    take_stop_signals,
)

SAVED_EXIT_CODE = 75
"""How a run ends that a signal stopped and that saved a checkpoint; sysexits.h calls it EX_TEMPFAIL: run it again."""


class Preempted(Exception):
    """A signal asked for the end, and a checkpoint is saved.

    Args:
        by: The signal.
        checkpoint: The checkpoint's folder.
        step: The last optimizer step done.
        last: The step at which the run would be complete.
    """

    def __init__(self, by: signal.Signals, checkpoint: Path, step: int, last: int) -> None:
        super().__init__(f"{by.name}: saved {checkpoint}, after step {step} of {last}; the same command continues")


class StopSignals:
    """Remembers, within a `with` block, that a signal asked this process to end.

    A signal may come several times: the launcher passes on what a scheduler also sends to each rank. Only SIGINT that
    comes again after a while is taken for impatience, and raises KeyboardInterrupt wherever the process is.

    Attributes:
        received: The first signal that this process received, or None.
    """

    received: signal.Signals | None = None

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._interrupted: float | None = None

    def __enter__(self) -> "StopSignals":
        self._before = take_stop_signals(self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A rank that leaves with all saved keeps them to its end: the same signal may come by another way, and torchrun
        # ends the other ranks as soon as one has left.
        if not isinstance(error, Preempted):
            give_back_signals(self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which inherits the handler; its rank ends it
        if number == signal.SIGINT:
            now = time.monotonic()
            self._interrupted = self._interrupted or now
            if now - self._interrupted >= PATIENCE:
                raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
            if is_main():
                hint = "; Ctrl-C again ends at once, without it" if number == signal.SIGINT else ""
                # Not by sys.stderr, amid a write to which this may come.
                with suppress(OSError):
                    os.write(2, f"\n{self.received.name}: a checkpoint is saved after this step{hint}\n".encode())

    def agreed(self) -> signal.Signals | None:
        """Returns, on all ranks alike, a signal that some rank received, or None. A collective call."""
        if not in_group():
            return self.received
        number = torch.tensor(int(self.received or 0), device=collective_device())
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return signal.Signals(int(number)) if number else None
