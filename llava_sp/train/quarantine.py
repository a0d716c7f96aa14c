"""The samples that a run cannot read: each is written down once, and too many of them end the run."""

import json
import os
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from llava_sp.data.problems import Replaced
from llava_sp.train.runtime import gather, on_first_rank
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_text, writing
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

QUARANTINE_NAME = "quarantine.jsonl"
"""One JSON object a line, for each sample that could not be read and that another one took the place of."""

FIELDS = {"id": str, "record": int, "problem": str, "message": str, "step": int, "replaced_by": str}
"""Of such an object; records count from 1, as in messages, and so do steps: `step` is the first to meet the sample."""

_NAMED = 10
"""Samples that are warned of one by one; then a summary comes each time that their number has about doubled."""


class Quarantine:
    """Keeps account of the samples of a run that others had to take the place of.

    Every sample counts once, however often it is met: in several epochs, where ranks repeat some to fill up a batch, or
    again after the run was interrupted. A run that continues at some step forgets what it met from there on, for it
    meets that again; so in the end its file is that of an uninterrupted run.

    Args:
        folder: The run's output folder, where `QUARANTINE_NAME` grows.
        samples: Samples in the training data.
        max_share: Share of them that may be bad.
    """

    def __init__(self, folder: Path, samples: int, max_share: float) -> None:
        self.path = folder / QUARANTINE_NAME
        self.samples = samples
        self.max_share = max_share
        self._started = False
        self._entries: dict[int, dict[str, Any]] = {}  # by record; on the first rank only

    @property
    def count(self) -> int:
        """Number of bad samples so far; known on the first rank."""
        return len(self._entries)

    def note(self, replaced: list[Replaced], step: int) -> None:
        """Takes in what was replaced in the batches of an optimizer step; a collective call, once a step.

        Args:
            replaced: What this rank met.
            step: The optimizer step that these batches are for, from 1.

        Raises:
            UserError: More samples are bad than may be, or the file cannot be written; raised on all ranks.
        """
        if not self._started:
            on_first_rank(partial(self._start, step))
            self._started = True
        if found := gather(replaced):
            on_first_rank(partial(self._add, found, step))

    def _start(self, step: int) -> None:
        """Reads what the run met before this step, and drops the rest of the file: a line cut off, and later steps."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        known = [entry for entry in map(_parse, lines) if entry is not None and entry["step"] < step]
        self._entries = {entry["record"]: entry for entry in known}
        with writing(self.path):
            if known:
                write_text(self.path, "".join(map(_line, self._entries.values())))
            else:
                self.path.unlink()
        self._stop_if_too_many()

    def _add(self, found: list[Replaced], step: int) -> None:
        fresh: dict[int, dict[str, Any]] = {}
        # In an order that does not tell how many ranks there are.
        for bad in sorted(found, key=lambda bad: (bad.position, bad.by)):
            record = bad.position + 1
            if record not in self._entries:
                values = (bad.sample_id, record, str(bad.problem), bad.message, step, bad.by)
                fresh.setdefault(record, dict(zip(FIELDS, values, strict=True)))
        if not fresh:
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, fresh.values()))
            file.flush()
            os.fsync(file.fileno())
        before = self.count
        self._entries |= fresh
        for entry in islice(fresh.values(), max(_NAMED - before, 0)):
            logger.warning(
                "Sample %(id)r (record %(record)d) cannot be read, %(replaced_by)r takes its place: %(message)s", entry
            )
        if self.count > _NAMED and self.count.bit_length() > before.bit_length():
            logger.warning("%s", str(self))
        self._stop_if_too_many()

    def _stop_if_too_many(self) -> None:
        if self.count / self.samples > self.max_share:
            raise UserError(
                f"{self} Mend the data (--check_data full looks at all of it), or raise --max_bad_share, now "
                f"{self.max_share:g}."
            )

    def __str__(self) -> str:
        kinds = Counter(entry["problem"] for entry in self._entries.values()).most_common()
        first = ", ".join(repr(entry["id"]) for entry in islice(self._entries.values(), 5))
        return (
            f"{self.count:,} of {self.samples:,} samples cannot be read, a share of {self.count / self.samples:.2g}: "
            f"{', '.join(f'{count:,} x {problem}' for problem, count in kinds)}. The first: {first}"
            f"{', ...' if self.count > 5 else ''}; all are in {self.path}."
        )


def _parse(line: str) -> dict[str, Any] | None:
    """Returns the entry that a line holds, None if it was cut off."""
    with suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        return {name: kind(entry[name]) for name, kind in FIELDS.items()}
    return None


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
