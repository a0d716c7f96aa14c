"""Which parameters belong to which part, told by module ownership; freezing and LoRA derive from it.

The parts are `projector` (patch projector and spatial modules), `llm` (with its head), and `vision_tower`.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM

PARTS = ("projector", "llm", "vision_tower")


def plain_model(model: nn.Module) -> LlavaSPForCausalLM:
    """Returns the LLaVA-SP model inside a PEFT wrapper, or the model itself."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(plain, LlavaSPForCausalLM)
    return plain


def part_modules(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Returns the modules that own each part's parameters."""
    plain = plain_model(model)
    return {
        "projector": [plain.model.multi_modal_projector],
        "llm": [plain.model.language_model, plain.lm_head],
        "vision_tower": [plain.model.vision_tower],
    }


def set_trainable(model: nn.Module, parts: Iterable[str]) -> None:
    """Freezes the whole model but the named parts (of `PARTS`)."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    modules = part_modules(model)
    for part in parts:
        for module in modules[part]:
            module.requires_grad_(True)


def add_lora(model: LlavaSPForCausalLM, *, rank: int, alpha: float, dropout: float) -> PeftModel:
    """Wraps a model for LoRA tuning: LoRA on all linear layers inside the LLM, the whole projector trained beside it.

    Args:
        model: The model to tune; it is changed in place.
        rank: Rank r of the LoRA matrices.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout probability at LoRA's input.

    Returns:
        The wrapped model. Its trainable parameters are the LoRA matrices and the projector.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=lora_targets(model),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


LORA_TARGETS = re.escape(r"^model\.language_model\.(?:.*\.)?(?:NAMES)$").replace("NAMES", r"[\w|]+")
"""What `lora_targets` returns, as a pattern of patterns."""


def lora_targets(model: LlavaSPForCausalLM) -> str:
    """Returns a pattern of the full names of all linear layers inside the LLM; its head is not among them."""
    layers = model.model.language_model.named_modules()
    names = {name.rpartition(".")[2] for name, module in layers if isinstance(module, nn.Linear)}
    # A full match: a list of suffixes would also hit the vision tower, which has a `q_proj` of its own.
    return rf"^model\.language_model\.(?:.*\.)?(?:{'|'.join(sorted(names))})$"


def trainable_parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Returns the trainable parameters by owner: `projector`, `lora`, `llm`, `vision_tower`; only groups with any.

    Every trainable parameter is in exactly one group; one without an owner is our mistake, hence the assertion.
    """
    owner: dict[int, str] = {}
    for part, modules in part_modules(model).items():
        for module in modules:
            owner.update((id(parameter), part) for parameter in module.parameters())
    is_lora = _lora_parameters(model)
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert id(parameter) in owner, f"{name} belongs to no part"
        group = "lora" if id(parameter) in is_lora else owner[id(parameter)]
        groups.setdefault(group, []).append((name, parameter))
    return groups


def _lora_parameters(model: nn.Module) -> set[int]:
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for layer_name in module.adapter_layer_names:
                layers: Any = getattr(module, layer_name, None)
                if isinstance(layers, torch.nn.Module):
                    found.update(id(parameter) for parameter in layers.parameters())
    return found
