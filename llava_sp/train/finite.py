"""Whether weights can be weights: a flipped bit in a file loads without a word, and every loss after it is NaN."""

from collections.abc import Iterable

import torch

from llava_sp.utils.errors import UserError

LARGEST = 1e30
"""No weight is larger. A flipped bit of the exponent mostly leads not to infinity but to some 1e36."""

SHOWN = 3
"""Tensors that an error names."""

PART = 2**24
"""Elements that are counted at a time, which bounds the memory it takes."""


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str, mend: str) -> None:
    """Checks that weights are finite, at the cost of reading them once.

    Quantised weights and tensors on the meta device are passed over. Of what ZeRO-3 splits among the ranks, each rank
    checks its own share: there an error may be one rank's alone.

    Args:
        tensors: Named parameters or a state dict's items, on any device.
        what: What holds them, as the error begins, such as `"The weights of checkpoints/pretrain"`.
        mend: The error's last sentence.

    Raises:
        UserError: Some are NaN, infinite, or beyond `LARGEST`; the message names the first tensors that hold them.
    """
    broken = [(name, found, tensor.numel()) for name, tensor in tensors if (found := count_broken(tensor))]
    if broken:
        named = ", ".join(f"{name} ({found:,} of {size:,})" for name, found, size in broken[:SHOWN])
        more = f" and {len(broken) - SHOWN} more tensors" if len(broken) > SHOWN else ""
        raise UserError(
            f"{what} hold numbers that cannot be weights (NaN, infinite or beyond {LARGEST:.0e}): {named}{more}. {mend}"
        )


def count_broken(tensor: torch.Tensor) -> int:
    """Returns how many elements are NaN, infinite or too large; 0 for integers, 8-bit floats and the meta device."""
    share = getattr(tensor, "ds_tensor", None)
    values = (tensor if share is None else share).detach()
    if values.is_meta or not values.is_floating_point() or values.element_size() < 2:
        return 0
    largest = min(LARGEST, torch.finfo(values.dtype).max)
    # A sum takes no copy, and is no number or too large if one of its terms is. Other sums may be, hence the count.
    if values.sum().abs() <= largest:
        return 0
    return sum(int((~(part.abs() <= largest)).sum()) for part in values.flatten().split(PART))
