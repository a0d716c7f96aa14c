"""Accumulation follows from global batch, per-device batch and ranks, or the three are named in an error."""

import pytest

from llava_sp.train.batch_plan import plan_batch
from llava_sp.utils.errors import UserError


@pytest.mark.parametrize(
    ("per_device", "ranks", "global_batch", "accumulation"),
    [(16, 8, 256, 2), (16, 8, 128, 1), (4, 8, 128, 4), (4, 1, 128, 32), (16, 16, 256, 1), (1, 3, 12, 4)],
)
def test_accumulation_follows(per_device: int, ranks: int, global_batch: int, accumulation: int) -> None:
    plan = plan_batch(per_device=per_device, ranks=ranks, global_batch=global_batch, accumulation=None)
    assert plan.accumulation == accumulation
    assert plan.global_batch == global_batch


def test_global_batch_follows_from_an_explicit_accumulation() -> None:
    plan = plan_batch(per_device=4, ranks=2, global_batch=None, accumulation=3)
    assert plan.global_batch == 24


def test_neither_given_means_no_accumulation() -> None:
    assert plan_batch(per_device=4, ranks=2, global_batch=None, accumulation=None).accumulation == 1


@pytest.mark.parametrize(("per_device", "ranks", "global_batch"), [(16, 3, 256), (16, 8, 64), (5, 2, 128)])
def test_an_impossible_combination_names_the_three_numbers(per_device: int, ranks: int, global_batch: int) -> None:
    with pytest.raises(UserError) as error:
        plan_batch(per_device=per_device, ranks=ranks, global_batch=global_batch, accumulation=None)
    for number in (f"global_batch_size {global_batch}", f"batch_size {per_device}", f"{ranks} rank"):
        assert number in str(error.value)


def test_an_accumulation_that_disagrees_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_accumulation_steps 3 x 2 ranks = 24"):
        plan_batch(per_device=4, ranks=2, global_batch=128, accumulation=3)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="per_device_train_batch_size must be at least 1"):
        plan_batch(per_device=0, ranks=2, global_batch=128, accumulation=None)
