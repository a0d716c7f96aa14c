"""Checkpoints of others, opened: official LLaVA-SP, and LLaVA-1.5 in its original layout and in llava-hf's.

Whatever the layout, tensors get the names of the official one, relative to its `model.`, and the configuration its
fields; so there is one way from here on.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, LlavaConfig, PreTrainedConfig

from llava_sp.convert.lora import read_adapter
from llava_sp.convert.ours import BUFFERS, read_llm
from llava_sp.convert.tensors import (
    ADAPTER_FILES,
    EXTRA_FILES,
    FULL_FILES,
    PROJECTOR_FILES,
    Tensors,
    find_file,
    find_weights,
    read_tensors,
)
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.parts import explained
from llava_sp.model.trust import read_config, without_kernels
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_object

TOWER_PREFIX = "vision_tower.vision_tower."
LLM_PREFIXES = ("layers.", "embed_tokens.", "norm.", "lm_head.")
LLM_TYPES = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}

HF_NAMES = (
    (r"^(model\.)?language_model\.(model\.)?(?=layers|embed_tokens|norm)", ""),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?vision_tower\.", TOWER_PREFIX),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "mm_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "mm_projector.2."),
)
"""From llava-hf's names to the official ones: transformers 5's (`model.language_model.layers`) and older ones."""


@dataclass(frozen=True)
class Source:
    """A checkpoint of others, read but not yet understood.

    Args:
        home: Its folder or Hub name.
        kind: `full`, `lora`, `projector` or `llava-hf` (which is full too).
        config: Its `config.json` with LLaVA's fields; empty where there is none.
        text_config: The LLM's configuration.
        llm: Where the LLM comes from: its base, or the checkpoint itself.
        weights: The LLM's tensors by its own names (`model.layers...`), LoRA not merged.
        lora: LoRA matrices; empty where there are none.
        tower: The vision tower's tensors by its own names; empty where the configuration only names the tower.
        projector: All other tensors, relative to the official `model.`.
    """

    home: str
    kind: str
    config: dict[str, Any]
    text_config: PreTrainedConfig
    llm: str
    weights: Tensors
    lora: Tensors
    tower: Tensors
    projector: Tensors


def read_source(home: str, base: str | None = None) -> Source:
    """Opens a checkpoint of others.

    Args:
        home: Its folder or Hub name.
        base: The LLM that a LoRA or projector output stands on, in place of what the adapter names.

    Raises:
        UserError: It is none; the message lists the files that were looked for.
    """
    config_file = find_file(home, "config.json")
    config = read_json_object(config_file) if config_file else {}
    kind, files = _find(home)
    tensors = read_tensors(files)
    text_config = None
    if kind == "full" and "text_config" in config:
        kind = "llava-hf"
        tensors = {_from_hf(name): tensor for name, tensor in tensors.items()}
        config, text_config = _llava_fields(home)
    else:
        tensors = {_relative_name(name): tensor for name, tensor in tensors.items()}
        if kind == "full":
            text_config = _text_config(home, config)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(LLM_PREFIXES)}
    tower = {name: tensor for name, tensor in tensors.items() if name.startswith(TOWER_PREFIX)}
    projector = {name: tensor for name, tensor in tensors.items() if name not in own and name not in tower}
    weights = {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in own.items()}
    llm = home
    if text_config is None:
        llm = base or _named_base(home, kind)
        with explained("the LLM", llm):
            text_config = read_config(llm)
        weights = read_llm(llm) | weights
    return Source(
        home=home,
        kind=kind,
        config=config,
        text_config=text_config,
        llm=llm,
        weights=weights,
        lora=read_adapter(home)[0] if kind == "lora" else {},
        tower={name.removeprefix(TOWER_PREFIX): tensor for name, tensor in tower.items()},
        projector=projector,
    )


def _find(home: str) -> tuple[str, list[Path]]:
    if find_weights(home, ADAPTER_FILES):
        if files := find_weights(home, EXTRA_FILES):
            return "lora", files
        raise UserError(f"{home} holds an adapter but no {EXTRA_FILES[-1]}, without which there is no projector.")
    for kind, names in (("full", FULL_FILES), ("projector", PROJECTOR_FILES)):
        if files := find_weights(home, names):
            return kind, files
    looked_for = ", ".join((*FULL_FILES, *ADAPTER_FILES, *PROJECTOR_FILES))
    raise UserError(f"{home} holds no weights; none of {looked_for} is there.")


def _relative_name(name: str) -> str:
    """Strips the prefixes of DeepSpeed and PEFT, and the official `model.`."""
    for prefix in ("module.", "base_model.model.", "model."):
        name = name.removeprefix(prefix)
    return name


def _from_hf(name: str) -> str:
    for pattern, official in HF_NAMES:
        renamed = re.sub(pattern, official, name)
        if renamed != name:
            return renamed
    return name


def _llava_fields(home: str) -> tuple[dict[str, Any], PreTrainedConfig]:
    """Returns LLaVA's fields of a configuration of transformers' LLaVA, and the LLM's configuration."""
    with explained("the configuration", home):
        config = read_config(home)
    if isinstance(config, LlavaSPConfig):
        raise UserError(f"{home} is a checkpoint of this project already; there is nothing to import.")
    if type(config) is not LlavaConfig:
        raise UserError(
            f"{home}/config.json is of the model type {config.model_type!r}; {', '.join(LLM_TYPES)} can be imported."
        )
    fields = {
        "mm_vision_tower": home,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.vision_feature_select_strategy == "full" else "patch",
        "image_aspect_ratio": "square",
    }
    return fields, config.text_config


def _text_config(home: str, config: dict[str, Any]) -> PreTrainedConfig:
    model_type = str(config.get("model_type"))
    if model_type not in LLM_TYPES:
        raise UserError(
            f"{home}/config.json has model type {model_type!r}; official checkpoints have one of "
            f"{', '.join(LLM_TYPES)}."
        )
    ours = ("model_type", "architectures")
    fields = {name: value for name, value in without_kernels(config).items() if name not in ours and value is not None}
    with explained("the configuration", home):
        return CONFIG_MAPPING[LLM_TYPES[model_type]].from_dict(fields)


def _named_base(home: str, kind: str) -> str:
    file = find_file(home, "adapter_config.json")
    if name := (read_json_object(file) if file else {}).get("base_model_name_or_path"):
        return str(name)
    raise UserError(f"{home} holds a {kind} output, which stands on an LLM; give it with --base.")
