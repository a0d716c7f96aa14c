"""The check of the data before training: runs what training will run, and counts what would go wrong."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field

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
        checked: Samples that were looked at.
        counts: How many of them have each problem.
        first: The names of the first few of those.
        messages: What is wrong with the first of those, where there is more to say than the problem.
    """

    total: int
    checked: int = 0
    counts: Counter[Problem] = field(default_factory=Counter)
    first: dict[Problem, list[str]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[Problem, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training would get through: every sample can be read, and some teach something."""
        unreadable = any(problem.stops_training for problem in self.counts)
        return not unreadable and self.counts[Problem.NOTHING_LEARNED] < self.checked

    def add(self, name: str, problems: dict[Problem, str]) -> None:
        """Counts one sample, by its problems and what each says."""
        self.checked += 1
        for problem, message in problems.items():
            self.counts[problem] += 1
            self.messages.setdefault(problem, message)
            if len(self.first[problem]) < _NAMED:
                self.first[problem].append(name)

    def __str__(self) -> str:
        """Says it in a few lines, what stops training first."""
        found = "these problems:" if self.counts else "no problem."
        lines = [f"Checked {self.checked:,} of {self.total:,} samples: {found}"]
        for problem in sorted(self.counts, key=lambda problem: (not problem.stops_training, -self.counts[problem])):
            names = ", ".join(map(repr, self.first[problem])) + (", ..." if self.counts[problem] > _NAMED else "")
            weight = "stops training" if problem.stops_training else "warning"
            lines.append(f"  {self.counts[problem]:,} x {problem} ({weight}): {names}")
            if self.messages[problem]:
                lines.append(f"    {self.first[problem][0]!r}: {self.messages[problem]}")
        return "\n".join(lines)


def check_records(
    dataset: ConversationDataset, sample: int | None = 1000, *, workers: int | None = None, seed: int = 0
) -> Report:
    """Renders samples and decodes their images, and reports what is wrong with them. It shows a progress bar.

    Args:
        dataset: What training will read.
        sample: How many samples, drawn at random; None for all.
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
    report = Report(total)
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
            if all(label == IGNORE_INDEX for label in labels):
                problems[Problem.NOTHING_LEARNED] = ""
        except SampleError as error:
            problems[error.problem] = str(error)
        try:
            if record.image is not None:
                self.dataset.open_image(record)
        except SampleError as error:
            problems[error.problem] = str(error)
        if any(turn["from"] == "gpt" and not turn["value"].strip() for turn in record.conversations):
            problems[Problem.EMPTY_ANSWER] = ""
        return record.id, problems
