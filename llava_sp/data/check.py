"""The check of the data before training: runs what training will run, and counts what would go wrong."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava_sp.constants import IGNORE_INDEX
from llava_sp.data.dataset import ConversationDataset
from llava_sp.data.problems import Problem, SampleError

_NAMED = 5
"""Samples that a report names for each problem."""

_PER_WORKER = 250
"""Samples for which starting a worker process pays."""


@dataclass
class Report:
    """What a check found.

    Attributes:
        total: Samples in the data.
        max_bad_share: Share of them that training replaces if they cannot be read, before it stops.
        checked: Samples that were looked at.
        unreadable: How many of them cannot be read.
        counts: How many of them have each problem.
        first: The names of the first few of those.
        messages: What is wrong with the first of those, where there is more to say than the problem.
    """

    total: int
    max_bad_share: float = 0.0
    checked: int = 0
    unreadable: int = 0
    counts: Counter[Problem] = field(default_factory=Counter)
    first: dict[Problem, list[str]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[Problem, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training would get through: not too many samples are unreadable, and some teach something.

        A sample of the data may hold more of them by chance, up to three standard deviations; training counts them all.
        """
        expected = self.max_bad_share * self.checked
        chance = 3 * sqrt(expected) if self.checked < self.total else 0.0
        few = self.unreadable_share <= self.max_bad_share or self.unreadable <= expected + chance
        return few and self.unreadable + self.counts[Problem.NOTHING_LEARNED] < self.checked

    @property
    def unreadable_share(self) -> float:
        """Share of the checked samples that cannot be read."""
        return self.unreadable / max(self.checked, 1)

    def add(self, name: str, problems: dict[Problem, str]) -> None:
        """Counts one sample, by its problems and what each says."""
        self.checked += 1
        self.unreadable += any(problem.unreadable for problem in problems)
        for problem, message in problems.items():
            self.counts[problem] += 1
            self.messages.setdefault(problem, message)
            if len(self.first[problem]) < _NAMED:
                self.first[problem].append(name)

    def __str__(self) -> str:
        """Says it in a few lines, what cannot be read first."""
        found = "these problems:" if self.counts else "no problem."
        unreadable = "cannot be read" if self.max_bad_share else "stops training"
        lines = [f"Checked {self.checked:,} of {self.total:,} samples: {found}"]
        for problem in sorted(self.counts, key=lambda problem: (not problem.unreadable, -self.counts[problem])):
            names = ", ".join(map(repr, self.first[problem])) + (", ..." if self.counts[problem] > _NAMED else "")
            weight = unreadable if problem.unreadable else "warning"
            lines.append(f"  {self.counts[problem]:,} x {problem} ({weight}): {names}")
            if self.messages[problem]:
                lines.append(f"    {self.first[problem][0]!r}: {self.messages[problem]}")
        if self.max_bad_share and self.unreadable:
            lines.append(
                f"Others take the place of those {self.unreadable:,} that cannot be read, a share of "
                f"{self.unreadable_share:.2g}; training stops at more than {self.max_bad_share:g} of all. Mend them, "
                "take them out of the data, or raise --max_bad_share."
            )
        return "\n".join(lines)


def check_records(
    dataset: ConversationDataset,
    sample: int | None = 1000,
    *,
    max_bad_share: float = 0.0,
    workers: int | None = None,
    seed: int = 0,
) -> Report:
    """Reads samples as training does, and reports what is wrong with them. It shows a progress bar.

    Args:
        dataset: What training will read.
        sample: How many samples, drawn at random; None for all.
        max_bad_share: Share of all samples that training replaces if they cannot be read.
        workers: Worker processes; 0 for none, None for up to one a CPU core, as there is to do.
        seed: Of the draw. The global random state is left alone.

    Raises:
        UserError: Something is wrong with the settings, not with a sample.
    """
    total = len(dataset)
    positions = np.arange(total)
    if sample is not None and sample < total:
        positions = np.sort(np.random.default_rng(seed).choice(total, size=sample, replace=False))
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(positions) // _PER_WORKER)
    loader = DataLoader(
        _Inspection(dataset, positions),
        batch_size=min(64, max(1, len(positions) // 100)),
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else a loader draws from the global one
    )
    report = Report(total, max_bad_share)
    with tqdm(total=len(positions), unit=" samples", desc="Checking the data", leave=False) as bar:
        for batch in loader:
            for name, problems in batch:
                report.add(name, problems)
            bar.update(len(batch))
    return report


class _Inspection(Dataset):
    """The names and problems of some samples."""

    def __init__(self, dataset: ConversationDataset, positions: np.ndarray) -> None:
        self.dataset = dataset
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[str, dict[Problem, str]]:
        record = self.dataset.records[int(self.positions[index])]
        problems: dict[Problem, str] = {}
        try:
            labels = self.dataset.encode(record).labels
        except SampleError as error:
            problems[error.problem] = str(error)
        try:
            if record.image is not None:
                self.dataset.prepare_image(record)
        except SampleError as error:
            problems[error.problem] = str(error)
        if not problems and all(label == IGNORE_INDEX for label in labels):
            problems[Problem.NOTHING_LEARNED] = ""
        if any(turn["from"] == "gpt" and not turn["value"].strip() for turn in record.conversations):
            problems[Problem.EMPTY_ANSWER] = ""
        return record.id, problems
