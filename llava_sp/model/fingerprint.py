"""Telling weights from other weights of the same shape, in milliseconds and whatever type they were loaded in."""

import math

import torch
from torch import nn

SAMPLED = 32
"""Parameters that are looked at."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def fingerprint(module: nn.Module) -> str:
    """Returns the first values of parameters spread over a module, in bfloat16 and hexadecimal.

    A hash of the bytes would change with the type that the weights are loaded in; values can be compared as numbers.
    Weights that bitsandbytes packed have no values to look at, and count as not a number.

    Args:
        module: The LLM without its head, or the vision tower, before LoRA is added.
    """
    parameters = list(module.parameters())
    # Multiples of the golden ratio spread over all layers, and do not always meet the same kind of weight.
    chosen = [parameters[int(len(parameters) * (step * GOLDEN_RATIO % 1))] for step in range(SAMPLED)]
    values = [weight.flatten()[0].item() if weight.is_floating_point() else math.nan for weight in chosen]
    return torch.tensor(values, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes().hex()


def same_weights(first: str, second: str) -> bool:
    """Tells whether two fingerprints differ by no more than 16-bit types round."""
    a, b = (torch.frombuffer(bytearray.fromhex(text), dtype=torch.bfloat16).float() for text in (first, second))
    if a.shape != b.shape:
        return False
    known = ~(a.isnan() | b.isnan())
    return torch.allclose(a[known], b[known], rtol=2**-7, atol=1e-6)
