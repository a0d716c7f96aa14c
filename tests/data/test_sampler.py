"""The order of samples: complete, reproducible, of one modality a step, the same however it is sharded."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava_sp.data.sampler import ModalityLengthSampler


def batched(items: Iterable[int], size: int) -> list[list[int]]:
    iterator = iter(items)
    return list(iter(lambda: list(islice(iterator, size)), []))


lengths_of_any_mix = st.lists(st.integers(-50, 50).filter(bool), max_size=80)
sizes = st.integers(1, 5)


def whole_order(
    lengths: Any,
    batch_size: int = 2,
    world_size: int = 2,
    *,
    seed: int = 0,
    epoch: int = 0,
    group: bool = True,
    drop_last: bool = False,
) -> Any:
    sampler = ModalityLengthSampler(np.array(lengths, dtype=int), batch_size, world_size, seed, group, drop_last)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def order(lengths: Any, *args: Any, **kwargs: Any) -> Any:
    """Without what fills up the last step."""
    return whole_order(lengths, *args, **kwargs)[: len(lengths)]


@given(lengths=lengths_of_any_mix, batch_size=sizes, world_size=sizes, seed=st.integers(0, 2**32), group=st.booleans())
def test_every_sample_comes_once(lengths: list[int], batch_size: int, world_size: int, seed: int, group: bool) -> None:
    assert sorted(order(lengths, batch_size, world_size, seed=seed, group=group)) == list(range(len(lengths)))


@given(lengths=lengths_of_any_mix, batch_size=sizes, world_size=sizes, group=st.booleans())
def test_all_steps_are_whole(lengths: list[int], batch_size: int, world_size: int, group: bool) -> None:
    step, once = batch_size * world_size, order(lengths, batch_size, world_size, group=group)
    filled = whole_order(lengths, batch_size, world_size, group=group)
    assert len(filled) == -(-len(lengths) // step) * step
    assert all(index == once[position % len(once)] for position, index in enumerate(filled))
    dropped = whole_order(lengths, batch_size, world_size, group=group, drop_last=True)
    assert dropped == once[: len(lengths) // step * step]


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_step_has_the_same_samples_on_any_number_of_ranks(ranks: int) -> None:
    """Also the last one, where accelerate would fill up whichever ranks have none."""
    sampler = ModalityLengthSampler(np.arange(1, 19), batch_size=2, world_size=4, seed=0, group=True)
    alone = [sorted(indices) for indices in batched(sampler, 8)]
    batches = BatchSampler(sampler, 2, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes=ranks, process_index=rank)) for rank in range(ranks)]
    of_a_rank = 4 // ranks
    steps = [
        sorted(index for shard in shards for batch in shard[start : start + of_a_rank] for index in batch)
        for start in range(0, len(shards[0]), of_a_rank)
    ]
    assert steps == alone
    assert [len(step) for step in steps] == [8, 8, 8]


@given(lengths=lengths_of_any_mix, batch_size=sizes, world_size=sizes)
def test_steps_are_of_one_modality_while_they_last(lengths: list[int], batch_size: int, world_size: int) -> None:
    signs = np.sign(np.array(lengths, dtype=int))[order(lengths, batch_size, world_size)]
    step = batch_size * world_size
    whole = sum((signs == sign).sum() // step for sign in (-1, 1)) * step
    for start in range(0, whole, step):
        assert len(set(signs[start : start + step])) == 1
    mixed = [start for start in range(0, len(signs), batch_size) if len(set(signs[start : start + batch_size])) > 1]
    assert len(mixed) <= 1


def test_micro_batches_share_the_words_of_a_step() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, size=64)
    batches = lengths[order(lengths, batch_size=8, world_size=8)].reshape(8, 8).sum(axis=1)
    shuffled = lengths[order(lengths, batch_size=8, world_size=8, group=False)].reshape(8, 8).sum(axis=1)
    assert np.ptp(batches) < np.ptp(shuffled) / 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [(-1) ** n * (n + 1) for n in range(100)]
    for group in (True, False):
        first = order(lengths, group=group)
        torch.manual_seed(7)
        np.random.seed(7)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        assert order(lengths, group=group) == first
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        others = [order(lengths, group=group, epoch=1), order(lengths, group=group, seed=1)]
        assert first not in others
        assert others[0] != others[1]


def test_epochs_can_be_gone_through_in_any_order() -> None:
    sampler = ModalityLengthSampler(np.arange(1, 50), 4, 2, seed=3, group=True)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_accelerate_gives_each_rank_micro_batches_of_one_modality(ranks: int) -> None:
    lengths = np.array([5] * 64 + [-5] * 32)
    sampler = ModalityLengthSampler(lengths, batch_size=4, world_size=4, seed=0, group=True)
    batches = BatchSampler(sampler, 4, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes=ranks, process_index=rank)) for rank in range(ranks)]
    assert sorted(index for shard in shards for batch in shard for index in batch) == list(range(96))
    for batches_of_one_moment in zip(*shards, strict=True):
        assert len({np.sign(lengths[index]) for batch in batches_of_one_moment for index in batch}) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loader_that_resumes_in_a_later_epoch_goes_on_where_it_was(ranks: int) -> None:
    def loader() -> Any:
        sampler = ModalityLengthSampler(np.arange(1, 33), batch_size=4, world_size=2, seed=0, group=True)
        batches: Any = BatchSampler(sampler, 4, drop_last=False)
        if ranks > 1:
            batches = BatchSamplerShard(batches, num_processes=ranks, process_index=1)
        return DataLoaderShard(list(range(32)), batch_sampler=batches)

    whole = loader()
    epochs = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in whole])
    resumed = loader()
    resumed.set_epoch(2)
    rest = [batch.tolist() for batch in skip_first_batches(resumed, 2)]
    assert rest == epochs[2][2:]
    assert epochs[1] != epochs[2]
