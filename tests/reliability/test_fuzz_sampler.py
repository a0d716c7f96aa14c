"""Whatever the lengths and sizes: each sample once an epoch, in an order that follows from the arguments."""

import numpy as np
from hypothesis import strategies as st

from llava_sp.data.sampler import ModalityLengthSampler
from tests.reliability.strategies import fuzz

lengths = st.one_of(
    st.lists(st.integers(-60, 60).filter(bool), max_size=120),
    st.lists(st.sampled_from([1, -1, 7, -7, 2**40, -(2**40)]), max_size=60),
    st.integers(0, 300).map(lambda count: [5] * count),
)


@fuzz(
    800,
    lengths=lengths,
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    group=st.booleans(),
)
def test_an_epoch_is_each_sample_once_in_an_order_of_its_own(
    lengths: list[int], batch_size: int, world_size: int, seed: int, epoch: int, group: bool
) -> None:
    step = batch_size * world_size

    def order() -> list[int]:
        sampler = ModalityLengthSampler(np.array(lengths, dtype=np.int64), batch_size, world_size, seed, group)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert len(indices) == len(sampler) == -(-len(lengths) // step) * step
        return indices

    filled = order()
    np.random.seed(seed)  # no state of others counts
    assert order() == filled
    assert all(type(index) is int for index in filled)
    indices, more = filled[: len(lengths)], filled[len(lengths) :]
    assert all(index == indices[position % len(indices)] for position, index in enumerate(more))
    assert sorted(indices) == list(range(len(lengths)))
    if not group:
        return
    signs = np.sign(np.array(lengths, dtype=np.int64)[indices])
    whole = sum(int((signs == sign).sum()) // step for sign in (-1, 1)) * step
    for start in range(0, whole, step):
        assert len(set(signs[start : start + step])) == 1
    # What is left: micro-batches of one modality, the samples with an image first, but for the very last.
    rest = signs[whole:]
    full = [int((rest == sign).sum()) // batch_size * batch_size for sign in (1, -1)]
    assert rest[: full[0]].tolist() == [1] * full[0]
    assert rest[full[0] : sum(full)].tolist() == [-1] * full[1]
