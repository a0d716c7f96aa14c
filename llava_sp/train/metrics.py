"""What a step cost and how fast it went: tokens, padding, floating-point operations, and their share of the peak."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llava_sp.constants import IGNORE_INDEX
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.quantization import count
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.model.trainable import part_modules, plain_model
from llava_sp.utils.ranks import in_group

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A6000": 154.8e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 matrix peak of one GPU in FLOP/s from its maker's data sheet; the first name that fits counts."""

SLOWER = {"NVL", "MIG", "Laptop", "D"}
"""Words in the name of a GPU, or of a part of one, that is slower than its namesake in the table."""


def peak_flops(device_name: str) -> float | None:
    """Returns a GPU's dense bf16 peak in FLOP/s, None if it is not in the table."""
    words = set(re.split(r"[ -]", device_name))
    if words & SLOWER:
        return None
    return next((peak for name, peak in PEAK_BF16_FLOPS.items() if words.issuperset(name.split())), None)


def count_supervised(labels: torch.Tensor) -> torch.Tensor:
    """Counts the supervised tokens of labels [B, L]; the first position is predicted from nothing."""
    return labels[:, 1:].ne(IGNORE_INDEX).sum()


class FlopCounter:
    """Floating-point operations of training on a batch, forward and backward, by the usual formula.

    A matrix of P parameters costs 2P per token in the forward pass, 2P more where gradients pass through it to earlier
    layers, and 2P more where it learns. Attention adds 4LHS and twice that backward (L layers, H width, S length), as
    PaLM counts (arXiv 2204.02311, appendix B). The tower runs forward only. The projector is made of parts that see an
    image once, or by windows, or patch by patch: its forward pass is counted by PyTorch, without computing it.
    Recomputation by gradient checkpointing is not counted, so the share of the peak is MFU.
    """

    def __init__(self, model: nn.Module) -> None:
        plain = plain_model(model)
        parts = part_modules(model)
        text, vision = plain.config.text_config, plain.config.vision_config
        matrices = _matrices(parts["llm"])
        embedding = plain.get_input_embeddings().weight
        frozen = sum(count(p) for p in matrices if p is not embedding and not p.requires_grad)
        learning = sum(p.numel() for p in matrices if p is not embedding and p.requires_grad)
        if plain.lm_head.weight is embedding:
            frozen += embedding.numel()
        self._per_token = 4 * frozen + 6 * learning
        self._per_token_and_length = 12 * text.num_hidden_layers * text.hidden_size
        patches = plain.config.grid_side**2
        tower = sum(p.numel() for p in _matrices(parts["vision_tower"]))
        self._per_image = (
            2 * tower * patches
            + 4 * vision.num_hidden_layers * vision.hidden_size * patches**2
            + 3 * _projector_flops(plain.config)
        )

    def batch(self, tokens: int, length: int, images: int) -> float:
        """Returns the operations of one batch.

        Args:
            tokens: Tokens with padding, over all samples; visual tokens included.
            length: Length S of its sequences.
            images: Number of images; for AnyRes of their views.
        """
        return float(tokens * (self._per_token + self._per_token_and_length * length) + images * self._per_image)


def _projector_flops(config: LlavaSPConfig) -> int:
    """Counts the operations of the projector's forward pass on one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        LlavaSPProjector(config)(torch.empty(1, config.grid_side**2, config.feature_channels))
    return counted.get_total_flops()


def _matrices(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.ndim >= 2]


class Meter:
    """Counts what the batches of this rank hold, and reports it over all ranks since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.start()

    def start(self) -> None:
        """Starts counting from zero."""
        # samples, tokens, positions (tokens and padding), supervised tokens, operations
        self._sums = torch.zeros(5, dtype=torch.float64)
        self.steps = 0
        self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for what is no training step: saving, evaluating."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def count(self, batch: dict[str, Any], flops: float) -> None:
        """Adds one micro-batch: ids and labels [B, L], mask [B, L]."""
        labels = batch["labels"]
        numbers = (len(labels), batch["attention_mask"].sum(), labels.numel(), count_supervised(labels), flops)
        self._sums += torch.tensor([float(number) for number in numbers], dtype=torch.float64)

    def report(self) -> dict[str, float]:
        """Returns rates over all ranks since the last call, and starts anew; a collective call."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        sums = self._sums.to(self._device)
        ranks = 1
        if in_group():
            ranks = dist.get_world_size()
            dist.all_reduce(sums)
        samples, tokens, positions, supervised, flops = sums.tolist()
        report = {
            "tokens_per_second": round(tokens / seconds, 1),
            "samples_per_second": round(samples / seconds, 3),
            "supervised_tokens_per_step": round(supervised / max(self.steps, 1), 1),
            "padding_share": round(1 - tokens / positions, 4) if positions else 0.0,
        }
        if self._peak:
            report["mfu"] = round(flops / seconds / (self._peak * ranks), 4)
        self.start()
        return report
