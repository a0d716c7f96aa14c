"""Ends a run that has come to a stop, on all ranks, and says which of them the others wait for.

Ranks run in lockstep: where one stops, the others wait for it in their next collective, for good if it never comes. So
each rank counts what it begins (`Watchdog.beat`), a thread of its own tells the count to the others by a small file in
the output folder, and the rank that is behind is the one that has stopped. Files and not the process group's store:
that may be served by a rank, and is silent with it.
"""

import faulthandler
import json
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from llava_sp.train import events, runtime
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json
from llava_sp.utils.ranks import rank, world_size

STALLED = 70
"""Exit code of a run that was ended because it stood still."""

FOLDER_NAME = ".progress"
"""Folder in the output folder with a file for each rank; it goes when all ranks are through."""

STACKS_NAME = "stalled-rank-{}.txt"
"""Where a rank writes what its threads are doing when it has stopped."""

SLOW = 3
"""How many times the limit a slow phase may take, and so may the first step."""

TICKS = 10
"""How often in its limit a rank looks, and tells the others."""


WAITING = ("/torch/distributed/", "/torch/nn/parallel/", "/torch/autograd/graph.py", "/deepspeed/")
"""Code in which a rank waits for others: collectives, and what makes some amid a pass or an update."""


@dataclass(frozen=True, order=True)
class Progress:
    """How far a rank is; the lesser is behind. Times are those of the wall clock, which machines share.

    Args:
        step: The optimizer step.
        count: Number of things begun in this step, alike on all ranks.
        doing: What was begun last.
        since: When.
        allowed: Seconds that it may take.
        told: When the rank told so.
        where: Line of code where the main thread is.
        waits: Whether it is there to wait for other ranks.
        answers: Whether the rank still tells.
    """

    step: int
    count: int
    doing: str = field(compare=False)
    since: float = field(compare=False)
    allowed: float = field(compare=False)
    told: float = field(compare=False)
    where: str = field(default="", compare=False)
    waits: bool = field(default=False, compare=False)
    answers: bool = field(default=True, compare=False)


class Watchdog:
    """Watches over a training loop; a context manager.

    Every rank ends with `STALLED` within twice the limit from when one stops, also if that one is stopped from outside
    (a rank so stopped ends when whoever started it sees that another has).

    Args:
        folder: The output folder, which all ranks share.
        limit: Seconds without progress after which the run is ended; 0 never ends it.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._first: int | None = None
        self._last = (0, 0, "starting", True, time.monotonic())
        """Step, number of things begun in it, the last of them, whether it is slow, and when it began."""
        self._entered = 0.0
        self._left = threading.Event()
        self._telling = threading.Lock()

    def beat(self, doing: str, step: int, *, slow: bool = False) -> None:
        """Notes that something new begins; to be called on all ranks alike, by the main thread.

        Args:
            doing: What begins, as a message will say it: "fetching a batch".
            step: The optimizer step, counted from 1.
            slow: Whether it may take `SLOW` times the limit, such as saving.
        """
        if self._first is None:
            self._first = step
        last_step, count, _, was_slow, _ = self._last
        slow = slow or step == self._first
        self._last = (step, count + 1 if step == last_step else 0, doing, slow, time.monotonic())
        if slow != was_slow and self._entered:
            self._tell()  # at once: the others must know what this rank may take, and what is slow may bar its thread

    def go_on(self) -> None:
        """Notes that what was begun last goes on: it has parts, of which ranks may have different numbers."""
        self._last = (*self._last[:-1], time.monotonic())

    def __enter__(self) -> Self:
        """Begins to watch."""
        if self.limit:
            self._entered = time.time()
            self._last = (*self._last[:-1], time.monotonic())
            self._tell()
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the watch. A rank that leaves by an error is behind from then on; others may wait for it."""
        if not self.limit:
            return
        with self._telling:
            self._left.set()
            faulthandler.cancel_dump_traceback_later()
        if world_size() > 1:
            own = self._own() if kind else replace(self._own(), step=sys.maxsize, doing="done")
            with suppress(OSError):
                self._write(own)
                if all(progress.step == sys.maxsize for progress in self._all(own).values()):
                    shutil.rmtree(self.folder / FOLDER_NAME, ignore_errors=True)

    def _watch(self) -> None:
        while not self._left.wait(self.limit / TICKS):
            own = self._tell()
            now = time.time()
            if now - own.since < self.limit:
                continue
            everyone = self._all(own)
            if (stalled := find_stalled(everyone, now)) and not self._left.is_set():
                self._end(stalled, everyone, now)

    def _own(self) -> Progress:
        step, count, doing, slow, began = self._last
        now, allowed = time.time(), self.limit * (SLOW if slow else 1)
        where, waits = main_thread()
        return Progress(step, count, doing, now - (time.monotonic() - began), allowed, now, where, waits)

    def _tell(self) -> Progress:
        """Tells the other ranks how far this one is, and sets the alarm for the case that this thread cannot."""
        with self._telling:
            own = self._own()
            if not self._left.is_set():
                # By a thread without Python: the main thread may hold the interpreter, and a disk may not answer. The
                # other ranks speak first.
                faulthandler.dump_traceback_later(own.allowed + self.limit / 2, exit=True, file=2)
                if world_size() > 1:
                    with suppress(OSError):  # a full disk is for the trainer to tell
                        self._write(own)
            return own

    def _write(self, progress: Progress) -> None:
        path = self.folder / FOLDER_NAME / f"rank-{rank()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or as before, but without a wait for the disk, which a checkpoint may keep busy.
        fresh = path.with_name(f".{path.name}")
        fresh.write_text(json.dumps(asdict(progress)))
        fresh.replace(path)

    def _all(self, own: Progress) -> dict[int, Progress]:
        """Returns how far each rank is; one that has not begun since this one did is behind all others."""
        missing = Progress(-1, 0, "starting", self._entered, self.limit * SLOW, self._entered)
        found = {}
        for number in range(world_size()):
            try:
                told = Progress(**read_json(self.folder / FOLDER_NAME / f"rank-{number}"))
            except (UserError, TypeError):
                told = missing
            told = told if told.told >= self._entered else missing  # else it is of a former run
            answers = own.told - told.told < self.limit / 2
            found[number] = replace(told, answers=answers, waits=told.waits and answers)
        return {**found, rank(): own}

    def _end(self, stalled: list[int], everyone: dict[int, Progress], now: float) -> None:
        """Says what has stopped, and ends this process."""
        message, first = describe(stalled, everyone, now, self.folder), everyone[stalled[0]]
        runtime.tell(UserError(message))
        sys.stderr.flush()
        if rank() in stalled:
            with suppress(OSError), (self.folder / STACKS_NAME.format(rank())).open("w") as file:
                faulthandler.dump_traceback(file)
        if rank() == min(number for number, progress in everyone.items() if progress.answers):
            events.append(self.folder, "stalled", message, step=first.step, ranks=stalled, doing=first.doing)
        # All at one time: a rank that waits for one that has ended would add an error of its own.
        time.sleep(max(0, first.since + first.allowed + 4 * self.limit / TICKS - time.time()))
        os._exit(STALLED)


def find_stalled(everyone: dict[int, Progress], now: float) -> list[int]:
    """Returns the ranks that the others wait for: those that are behind, if they have been there for too long."""
    busy = {number: progress for number, progress in everyone.items() if not progress.waits} or everyone
    least = min(busy.values())
    behind = {number: progress for number, progress in busy.items() if progress == least}
    return list(behind) if all(now - progress.since >= progress.allowed for progress in behind.values()) else []


def describe(stalled: list[int], everyone: dict[int, Progress], now: float, folder: Path) -> str:
    """Returns what has stopped, and what to do, in a line."""
    first, one = everyone[stalled[0]], len(stalled) == 1
    who = f"Rank{'' if one else 's'} {' and '.join(map(str, stalled))}" if len(everyone) > 1 else "The run"
    seconds = now - max(everyone[number].since for number in stalled)
    if first.answers:
        happened = f"made no progress for {seconds:.0f} s in step {first.step} ({first.doing}, {first.where})"
        more = f"What happens there is in {folder / STACKS_NAME.format(stalled[0] if one else '*')}."
    else:
        happened = f"not answered for {seconds:.0f} s, since step {first.step} ({first.doing})"
        more = "The process is stopped, or its machine is gone."
    return (
        f"{who} {'has' if one else 'have'} {happened}{'; the others wait' if len(stalled) < len(everyone) else ''}. "
        f"{more} If all it needs is time, give a larger --stall_timeout; the same command continues from the last "
        "checkpoint."
    )


def main_thread() -> tuple[str, bool]:
    """Returns the line of code at which the main thread is, and whether it waits there for other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "", False
    file = frame.f_code.co_filename
    waits = file == runtime.__file__ or any(place in file for place in WAITING)
    return f"{Path(file).name}:{frame.f_lineno}", waits
