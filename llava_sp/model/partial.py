"""Weight files of partial checkpoints: the projector alone, and LoRA with the projector (a PEFT folder)."""

import re
import warnings
from dataclasses import fields
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.parts import explained
from llava_sp.model.trainable import LORA_TARGETS
from llava_sp.model.trust import ADAPTER_CONFIG_NAME
from llava_sp.utils.errors import UserError

PROJECTOR_NAME = "projector.safetensors"
PROJECTOR_PREFIX = "model.multi_modal_projector."

ADAPTER_FIELDS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "modules_to_save"),
    *("bias", "fan_in_fan_out", "use_dora", "lora_bias", "init_lora_weights"),
}
"""What an adapter's configuration may set: plain LoRA, initialised in a way that leaves the base as it is."""


def load_projector(model: LlavaSPForCausalLM, path: str) -> None:
    """Fills a model's projector from a checkpoint's folder or Hub name.

    Raises:
        UserError: The file is missing or damaged, or its tensors are not those of this model's projector.
    """
    projector = model.model.multi_modal_projector
    with explained("the projector", path):
        found = load_file(cached_file(path, PROJECTOR_NAME))
    found = {name.removeprefix(PROJECTOR_PREFIX): tensor for name, tensor in found.items()}
    _check_fit(f"{path}/{PROJECTOR_NAME}", found, projector.state_dict())
    projector.load_state_dict(found)


def load_adapter(model: LlavaSPForCausalLM, path: str, *, trainable: bool) -> PeftModel:
    """Adds the LoRA and the projector of a checkpoint's folder or Hub name to a model.

    Raises:
        UserError: A file is missing or damaged, or its tensors do not fit this model.
    """
    with explained("the adapter", path):
        config = read_lora_config(path)
        found = load_file(cached_file(path, ADAPTER_NAME))
        ranks = {len(tensor) for name, tensor in found.items() if ".lora_A." in name}
        if ranks != {config.r}:  # which decides how much memory is taken
            raise UserError(f"{path}/{ADAPTER_CONFIG_NAME} has r {config.r}, and {ADAPTER_NAME} has {sorted(ranks)}.")
        config.inference_mode = not trainable
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what PEFT uses of transformers, and will not in time
            adapted = PeftModelForCausalLM(model, config)
    # PEFT itself only warns of names that are missing or left over.
    _check_fit(f"{path}/{ADAPTER_NAME}", found, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    set_peft_model_state_dict(adapted, found)
    return adapted


def read_lora_config(name: str) -> LoraConfig:
    """Reads the configuration of a LoRA adapter, which PEFT takes orders from.

    Raises:
        UserError: It is of another kind, or asks for more than plain LoRA, as for a module to import.
    """
    config = PeftConfig.from_pretrained(name)
    file = f"{name}/{ADAPTER_CONFIG_NAME}"
    if not isinstance(config, LoraConfig):
        raise UserError(f"{file} is of type {config.peft_type}; only LORA is supported.")
    usual = LoraConfig()
    odd = [
        field.name
        for field in fields(config)
        if field.name not in ADAPTER_FIELDS and getattr(config, field.name) != getattr(usual, field.name)
    ]
    if not isinstance(config.init_lora_weights, bool) and config.init_lora_weights != "gaussian":
        odd.append("init_lora_weights")  # others change the base, or read a file
    if isinstance(config.target_modules, str) and not re.fullmatch(LORA_TARGETS, config.target_modules):
        odd.append("target_modules to a pattern")  # which can be one that takes years to match
    if odd:
        raise UserError(f"{file} sets {', '.join(sorted(odd))}; only plain LoRA is supported. Merge it with PEFT.")
    return config


def save_projector(model: nn.Module, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
    """Saves a model's projector; the weights are `state_dict`'s if they had to be gathered."""
    state_dict = model.state_dict() if state_dict is None else state_dict
    chosen = {
        name: tensor.contiguous().cpu() for name, tensor in state_dict.items() if name.startswith(PROJECTOR_PREFIX)
    }
    save_file(chosen, folder / PROJECTOR_NAME, metadata={"format": "pt"})


def save_adapter(model: PeftModel, folder: Path, base: str, state_dict: dict[str, torch.Tensor] | None) -> None:
    """Saves a model's LoRA and projector as a PEFT folder that names its base."""
    model.peft_config[model.active_adapter].base_model_name_or_path = base
    # The LLM's embedding is not trained: PEFT would save it, seeing that its rows are not those of the bare LLM.
    model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form of questions that nobody has answered


def refuse_misfits(misfits: set[str], what: str, hint: str) -> None:
    """Raises a `UserError` if there are tensors that do not fit.

    Args:
        misfits: Their names.
        what: What does not fit what.
        hint: What may be the reason.
    """
    if misfits:
        raise UserError(
            f"{what}: {len(misfits)} tensors are missing, left over or of another shape, first {min(misfits)!r}. {hint}"
        )


def _check_fit(file: str, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Checks the names and shapes of a file's tensors."""
    misfits = {name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape}
    refuse_misfits(
        misfits | (wanted.keys() ^ found.keys()),
        f"{file} does not fit this model",
        "Is it another variant, or does it stand on another LLM or tower?",
    )
