"""Merging LoRA as a computation on lazy tensors: W + scale B A, in single precision, rounded once."""

from collections.abc import Callable

import torch
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from llava_sp.convert.tensors import ADAPTER_FILES, Tensors, find_weights, read_tensors
from llava_sp.model.partial import read_lora_config
from llava_sp.model.parts import explained
from llava_sp.utils.errors import UserError

PEFT_PREFIX = "base_model.model."


def read_adapter(home: str, names: tuple[str, ...] = ADAPTER_FILES) -> tuple[Tensors, Tensors]:
    """Opens a PEFT adapter.

    Args:
        home: Its folder or Hub name.
        names: Files to look for; the first that is there is read.

    Returns:
        The LoRA matrices, and the modules saved whole beside them; names are those of the model that was wrapped.

    Raises:
        UserError: None of the files is there, or it is damaged.
    """
    files = find_weights(home, names)
    if not files:
        raise UserError(f"{home} holds no adapter; there is no {' or '.join(names)}.")
    tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_tensors(files).items()}
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    return lora, {name: tensor for name, tensor in tensors.items() if name not in lora}


def merge_lora(weights: Tensors, lora: Tensors, home: str, model: PreTrainedModel, base: str) -> Tensors:
    """Returns the weights with an adapter merged into them.

    Args:
        weights: The weights of the model that was wrapped, by its own names.
        lora: The adapter's LoRA matrices.
        home: The adapter's folder or Hub name, for its `adapter_config.json`.
        model: A model of that kind on the meta device: PEFT itself says which layers are adapted, and by what scale.
        base: Name of what the weights are, for messages.

    Raises:
        UserError: The adapter is of another kind, or does not fit the weights.
    """
    layers = _adapted_layers(model, home)
    wanted = {f"{name}.lora_{matrix}.weight" for name in layers for matrix in "AB"}
    if misfits := sorted(lora.keys() ^ wanted):
        raise UserError(
            f"The adapter does not fit the LLM {base}: {len(misfits)} LoRA matrices are missing or left over, first "
            f"{misfits[0]}."
        )
    merged = dict(weights)
    for name, scale in layers.items():
        weight, a, b = weights[f"{name}.weight"], lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"]
        if weight.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            raise UserError(
                f"The adapter does not fit the LLM {base}: {name} is {list(weight.shape)} there, and its LoRA matrices "
                f"are {list(b.shape)} and {list(a.shape)}. It was trained on another base."
            )
        merged[f"{name}.weight"] = weight.then(_merge(scale), a, b)
    return merged


def _merge(scale: float) -> Callable[..., torch.Tensor]:
    def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)

    return merge


def _adapted_layers(model: PreTrainedModel, home: str) -> dict[str, float]:
    """Returns the scale of each adapted layer, by its name in the model."""
    with explained("the adapter", home):
        config = read_lora_config(home)
    if config.use_dora or config.lora_bias or config.bias != "none" or config.fan_in_fan_out:
        raise UserError(f"{home}/adapter_config.json asks for DoRA, biases or fan_in_fan_out; merge it with PEFT.")
    with torch.device("meta"), explained("the adapter", home):
        adapted = inject_adapter_in_model(config, model)
    return {
        name: module.scaling["default"] for name, module in adapted.named_modules() if isinstance(module, LoraLayer)
    }
