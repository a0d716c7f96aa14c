"""4-bit and 8-bit weights by bitsandbytes: the linear layers inside the LLM; projector, tower and head are spared."""

import importlib.util
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llava_sp.model.trainable import plain_model
from llava_sp.utils.errors import UserError

Quantization = Literal["4bit", "8bit"]

SPARED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""Modules that keep their type, named from the top, as transformers matches them."""


def quantization_config(
    kind: Quantization | str, *, quant_type: str = "nf4", double_quant: bool = True
) -> BitsAndBytesConfig:
    """Returns the settings that transformers takes.

    Args:
        kind: `"4bit"` or `"8bit"`.
        quant_type: Type of 4-bit numbers, `"nf4"` or `"fp4"`.
        double_quant: Whether the scales of 4-bit numbers are quantised too.

    Raises:
        UserError: There is no such kind, or bitsandbytes is not installed.
    """
    if kind not in ("4bit", "8bit"):
        raise UserError(f"Unknown quantization {kind!r}; use '4bit', '8bit' or None.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("Quantised weights need bitsandbytes: pip install -e '.[bitsandbytes]'.")
    return BitsAndBytesConfig(
        load_in_4bit=kind == "4bit",
        load_in_8bit=kind == "8bit",
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        llm_int8_skip_modules=list(SPARED),
    )


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes 4-bit layers compute in a type; theirs would be float32. Nothing changes where there are none."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    for layer in layers:
        layer.compute_dtype = dtype
        if layer.out_features % 32 or layer.in_features % 64:
            layer.support_avx512bf16_for_cpu = False  # bitsandbytes' fastest kernel for CPUs stops at such a layer


def count(parameter: nn.Parameter) -> int:
    """Returns the number of a parameter's elements, also where it is packed in 4 bits or split among ranks (ZeRO-3)."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return packed.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


def quantised_parameters(model: nn.Module) -> int:
    """Returns how many parameters of a model would be quantised: the frozen linear layers inside the LLM."""
    layers = plain_model(model).model.language_model.modules()
    weights: list[Any] = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return sum(weight.numel() for weight in weights if not weight.requires_grad)
