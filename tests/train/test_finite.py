"""Weights that are no numbers are found wherever they hide, and nothing else is."""

from typing import Any

import pytest
import torch

from llava_sp.train.finite import LARGEST, check_finite, count_broken
from llava_sp.utils.errors import UserError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 77_777, -1])
def test_one_number_among_many_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    tensor = torch.randn(100_003).to(dtype)
    assert count_broken(tensor) == 0
    tensor[place] = bad
    assert count_broken(tensor) == 1


def test_infinities_that_cancel_are_found() -> None:
    assert count_broken(torch.tensor([float("inf"), -float("inf"), 0.0])) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_whose_sum_is_too_large_may_be_weights(dtype: torch.dtype) -> None:
    assert count_broken(torch.full((8,), min(LARGEST, torch.finfo(dtype).max), dtype=dtype)) == 0


@pytest.mark.parametrize("weight", [1.5, 0.02, -1e-6])
def test_a_flipped_bit_of_the_exponent_is_found(weight: float) -> None:
    weights = torch.full((64, 64), weight, dtype=torch.bfloat16)
    weights.view(torch.int16)[3, 5] |= 0b0_10000000_0000000
    with pytest.raises(UserError, match=r"^The start hold .*proj\.weight \(1 of 4,096\)\. Load it again\.$"):
        check_finite([("proj.weight", weights)], "The start", "Load it again.")


def test_the_first_tensors_are_named_and_the_rest_counted() -> None:
    good, bad = torch.zeros(2), torch.tensor([0.0, float("nan")])
    named = [("fine", good), *((f"bad{number}", bad) for number in range(5))]
    with pytest.raises(UserError, match=r"1e\+30\): bad0 \(1 of 2\), bad1 \(1 of 2\), bad2 \(1 of 2\) and 2 more"):
        check_finite(named, "The weights", "")
    check_finite(named[:1], "The weights", "")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([255, 127], dtype=torch.uint8),
        torch.tensor([float("nan")]).to(torch.float8_e4m3fn),
        torch.full((2,), float("nan"), device="meta"),
        torch.empty(0),
    ],
    ids=["packed", "float8", "meta", "empty"],
)
def test_what_has_no_readable_numbers_is_passed_over(tensor: torch.Tensor) -> None:
    assert count_broken(tensor) == 0


def test_of_a_split_tensor_the_own_share_is_checked() -> None:
    split: Any = torch.nn.Parameter(torch.empty(0))
    split.ds_tensor = torch.tensor([1.0, float("nan")])
    assert count_broken(split) == 1
