"""A run that continues on another number of ranks.

DeepSpeed's ZeRO splits the optimizer's state among the ranks and loads it on as many as wrote it; here it is split
anew. To ZeRO, a parameter group is a sequence of vectors: in stages 1 and 2 a single one, all parameters one behind
another; in stage 3 one for each parameter. Every rank holds a share of each vector. All shares of a vector have the
same size, and what lies beyond its end is zeros. A rank's shares stand in one flat tensor for each group; in stage 3 of
large models in several.

Without DeepSpeed, every rank has all of the state; only random streams belong to ranks.
"""

import re
import shutil
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate, count
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llava_sp.train.pickles import load
from llava_sp.utils.errors import UserError

REPARTITIONED = ".repartitioned"
"""Below a run's output folder, where a checkpoint that was split anew lies until it is loaded."""


@dataclass(frozen=True)
class _Format:
    """What ZeRO calls its state, and how it splits it.

    Args:
        weights: Name of the flat tensors of fp32 weights.
        optimizer: Name of the state of PyTorch's optimizer.
        whole: Whether all parameters of a group are one vector.
        unit: A share is a multiple of so many elements.
    """

    weights: str
    optimizer: str
    whole: bool
    unit: int


FORMATS = (
    _Format("single_partition_of_fp32_groups", "base_optimizer_state", whole=True, unit=2),
    _Format("fp32_flat_groups", "optimizer_state_dict", whole=False, unit=1),
)
"""Stages 1 and 2, and stage 3."""

OF_RANKS = ("group_paddings", "param_slice_mappings", "partition_count")
"""What ZeRO writes of its split for other tools; it does not read it."""


@dataclass(frozen=True)
class _Split:
    """How a parameter group is split among ranks.

    Args:
        lengths: Elements of each vector.
        shares: Elements of each vector that one rank holds, with zeros at the end.
        flats: For each flat tensor of a rank, the numbers of the vectors whose shares stand in it.
    """

    lengths: list[int]
    shares: list[int]
    flats: list[list[int]]

    @classmethod
    def make(cls, lengths: list[int], ranks: int, *, unit: int, limit: float) -> "_Split":
        """Splits as ZeRO does; a flat tensor that has `limit` elements is full."""
        shares = [-(-length // (unit * ranks)) * unit for length in lengths]
        flats: list[list[int]] = [[]]
        for number, _ in enumerate(shares):
            if flats[-1] and sum(shares[other] for other in flats[-1]) >= limit:
                flats.append([])
            flats[-1].append(number)
        return cls(lengths, shares, flats)

    @property
    def sizes(self) -> list[int]:
        """Elements of each flat tensor."""
        return [sum(self.shares[number] for number in numbers) for numbers in self.flats]

    def cut(self, flats: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns a rank's share of each vector, as views of its flat tensors."""
        shares = []
        for flat, numbers in zip(flats, self.flats, strict=True):
            sizes = [self.shares[number] for number in numbers]
            shares += [flat[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        return shares

    def deal(self, old: "_Split", flats: list[list[torch.Tensor]], rank: int) -> list[torch.Tensor]:
        """Returns the flat tensors of a rank, from those of each rank of another split.

        Raises:
            ValueError: These do not hold all that there must be.
        """
        held = [old.cut(own) for own in flats]
        pieces: list[list[torch.Tensor]] = []
        for number, (length, share) in enumerate(zip(self.lengths, self.shares, strict=True)):
            start, stop = rank * share, min((rank + 1) * share, length)
            offsets = zip(count(0, old.shares[number]), held, strict=False)
            found = [own[number][max(start - offset, 0) : max(stop - offset, 0)] for offset, own in offsets]
            if sum(map(len, found)) != max(stop - start, 0):
                raise ValueError("elements are missing")
            pieces.append([*found, found[0].new_zeros(share - max(stop - start, 0))])
        return [torch.cat([piece for number in numbers for piece in pieces[number]]) for numbers in self.flats]


def reseed(seed: int, *, step: int, rank: int) -> None:
    """Seeds the random streams of a rank anew, where those of a checkpoint belong to another number of ranks.

    They follow from the arguments alone: to continue from there once more gives the same again.

    Args:
        seed: The run's seed.
        step: Optimizer steps made so far.
        rank: Number of the rank.
    """
    transformers.set_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def repartition(checkpoint: Path, *, ranks: int, into: Path) -> Path:
    """Writes DeepSpeed's part of a checkpoint as so many ranks would have written it; to be called on one rank.

    The old files are mapped into memory. Of the new ones, one at a time is held: what a rank is about to load.

    Args:
        checkpoint: The checkpoint. It stays as it is.
        ranks: Number of ranks that are to continue from it.
        into: A folder for the result; what it holds is removed.

    Returns:
        `into`, for `Trainer.train(resume_from_checkpoint=...)`. It has the state of the engine, the schedule and the
        Trainer; the model is loaded from `checkpoint` itself, and random streams are for `reseed`.

    Raises:
        UserError: The checkpoint lacks a file, may hold code or is of a kind that cannot be split anew, or the disk is
            too full.
    """
    source = checkpoint / (checkpoint / "latest").read_text().strip()
    shutil.rmtree(into, ignore_errors=True)
    try:
        target = into / source.name
        target.mkdir(parents=True)
        _check_room(source, target)
        for name in ("latest", "scheduler.pt", "trainer_state.json"):
            shutil.copyfile(checkpoint / name, into / name)
        with torch.no_grad():
            _write(source, ranks, target)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return into


def _check_room(source: Path, target: Path) -> None:
    needed, free = sum(file.stat().st_size for file in source.iterdir()), shutil.disk_usage(target).free
    if free < needed:
        raise UserError(
            f"{target.parents[1]} has {free / 2**30:.1f} GiB free, and {needed / 2**30:.1f} GiB are needed for a while "
            f"to split {source} among another number of ranks. Free some, or continue on as many ranks as before."
        )


def _write(source: Path, ranks: int, target: Path) -> None:
    """Writes the folder `global_stepN`: the engine's file (in stage 3 one for each rank, all alike), and ZeRO's."""
    engines, parts = (sorted(source.glob(f"*mp_rank_00_{kind}_states.pt")) for kind in ("model", "optim"))
    engine = load(engines[0]) if engines else {}
    if not parts or len(parts) != engine.get("dp_world_size"):
        raise UserError(
            f"{source} is not whole: it holds {len(engines)} *_model_states.pt, {len(parts)} *_optim_states.pt."
        )
    stored = [load(_of_rank(parts[0], rank)) for rank in range(len(parts))]
    for name in {_of_rank(engines[0], rank).name for rank in range(ranks)}:
        torch.save({**engine, "dp_world_size": ranks}, target / name)
    try:
        for rank in range(ranks):
            path = target / _of_rank(parts[0], rank).name
            torch.save({**stored[0], "optimizer_state_dict": _state(stored, engine["param_shapes"], rank, ranks)}, path)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{source} cannot be split among another number of ranks: it does not hold what ZeRO is known to write "
            f"(with optimizers of 8 bits it does not). Continue on {len(parts)} rank(s), or start a new run from the "
            f"weights with --init_from {source.parent}."
        ) from None


def _of_rank(file: Path, rank: int) -> Path:
    """Returns the path of another rank's file, the same one if the ranks have it in common."""
    return file.with_name(re.sub(r"pp_rank_\d+", f"pp_rank_{rank}", file.name))


def _state(stored: list[dict[str, Any]], shapes: list[dict[str, torch.Size]], rank: int, ranks: int) -> dict[str, Any]:
    """Returns ZeRO's state of one of so many ranks, from the files of the ranks before.

    Args:
        stored: The content of each file.
        shapes: For each flat tensor before, the shapes of its parameters by name.
        rank: Number of the rank.
        ranks: Number of ranks.

    Raises:
        ValueError: The state does not lie as ZeRO is known to split it.
    """
    zero = stored[0]["ds_config"]["zero_optimization"]
    states = [file["optimizer_state_dict"] for file in stored]
    form = FORMATS[0] if FORMATS[0].weights in states[0] else FORMATS[1]
    if zero.get("round_robin_gradients"):
        raise ValueError("the order of parameters depends on the number of ranks")
    limit = inf if form.whole else zero.get("sub_group_size", 10**9)
    paddings = dict(enumerate(states[0].get("param_alignment_paddings", [])))
    weights: list[torch.Tensor] = []
    groups: list[dict[str, Any]] = []
    entries: dict[int, dict[str, Any]] = {}
    for group in states[0][form.optimizer]["param_groups"]:
        before = group["params"]
        lengths = [shape.numel() for number in before for shape in shapes[number].values()]
        lengths = [sum([*lengths, *paddings.get(before[0], [])])] if form.whole else lengths
        old, new = (_Split.make(lengths, number, unit=form.unit, limit=limit) for number in (len(states), ranks))
        after = range(len(weights), len(weights) + len(new.flats))
        groups.append({**group, "params": list(after)})
        entries.update((number, {}) for number in after)
        for key, value in states[0][form.optimizer]["state"][before[0]].items():
            values = [deepcopy(value) for _ in after]  # the optimizer counts steps in place, in each on its own
            if torch.is_tensor(value) and value.dim():
                flats = [[state[form.optimizer]["state"][number][key] for number in before] for state in states]
                if any([flat.numel() for flat in own] != old.sizes for own in flats):
                    raise ValueError(f"{key} is not split as the weights are")
                values = new.deal(old, flats, rank)
            for number, value in zip(after, values, strict=True):
                entries[number][key] = value
        weights += new.deal(old, [[state[form.weights][number] for number in before] for state in states], rank)
    optimizer = {**states[0][form.optimizer], "state": entries, "param_groups": groups}
    common = {name: value for name, value in states[0].items() if name not in OF_RANKS}
    return {**common, form.weights: weights, form.optimizer: optimizer}
