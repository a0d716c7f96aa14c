"""Checkpoints of this project as lazy tensors: any kind is read whole, and a full one is written."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig

from llava_sp.convert.lora import merge_lora, read_adapter
from llava_sp.convert.tensors import ADAPTER_FILES, FULL_FILES, LazyTensor, Tensors, find_weights, read_tensors
from llava_sp.convert.writing import write_weights
from llava_sp.model import loading
from llava_sp.model.bases import check_base, resolve_parts
from llava_sp.model.card import Card
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.fingerprint import fingerprint
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.partial import PROJECTOR_NAME, PROJECTOR_PREFIX
from llava_sp.model.parts import explained
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.errors import UserError

LLM, TOWER, PROJECTOR, HEAD = (
    "model.language_model.",
    "model.vision_tower.",
    PROJECTOR_PREFIX,
    "lm_head.weight",
)
PARTS = {LLM: "LLM", HEAD: "LLM", TOWER: "vision tower", PROJECTOR: "projector"}
VOCABULARY = {f"{LLM}embed_tokens.weight", HEAD}
"""What has a row for each token."""

BUFFERS = ("rotary_emb.inv_freq", "position_ids")
"""Ends of the names of what older versions of transformers saved and newer ones compute."""


@dataclass
class Checkpoint:
    """A whole model of this project, its weights unread.

    Args:
        config: Its configuration.
        processor: Its processor.
        generation: Its generation settings.
        card: Its card.
        tensors: All its weights, by the names of `LlavaSPForCausalLM`.
    """

    config: LlavaSPConfig
    processor: LlavaSPProcessor
    generation: GenerationConfig
    card: Card
    tensors: Tensors


def read_checkpoint(path: str, base: str | None = None, *, allow_other_base: bool = False) -> Checkpoint:
    """Opens a checkpoint of any kind; partial ones are completed from what they stand on, LoRA is merged.

    Args:
        path: Its folder or Hub name.
        base: What a partial checkpoint stands on, in place of what its card names.
        allow_other_base: Takes a base although its weights are not those that the checkpoint was trained with.

    Raises:
        UserError: There is no such checkpoint, or its weights do not fit.
    """
    card = loading.read_card(path)
    with explained("configuration and processor of the checkpoint", path):
        config = LlavaSPConfig.from_pretrained(path)
        processor = LlavaSPProcessor.from_pretrained(path)
        generation = GenerationConfig.from_pretrained(path)
    if card is None:
        card = describe(config, processor, stage="unknown")
    for part, part_config in (("llm", config.text_config), ("vision_tower", config.vision_config)):
        part_config.name_or_path = card.parts.get(part, part_config.name_or_path)
    tensors = _read_weights(path, card, config, base, allow_other_base=allow_other_base)
    return Checkpoint(config, processor, generation, card, fit(tensors, config))


def write_checkpoint(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Writes a full checkpoint, whatever kind it was."""
    for config in (checkpoint.config, checkpoint.config.text_config, checkpoint.config.vision_config):
        config.dtype = dtype
    checkpoint.config.architectures = [LlavaSPForCausalLM.__name__]
    checkpoint.config.save_pretrained(folder)
    checkpoint.generation.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    dataclasses.replace(checkpoint.card, kind="full", parts={}, fingerprint={}).write(folder)
    write_weights(folder, checkpoint.tensors, dtype)


def describe(config: LlavaSPConfig, processor: LlavaSPProcessor, *, stage: str, details: dict | None = None) -> Card:
    """Returns the card of a full checkpoint."""
    return Card(
        kind="full",
        parts={},
        stage=stage,
        conversation_template=processor.conversation_template,
        spatial={name: getattr(config, name) for name in loading.SPATIAL_FIELDS},
        details=details or {},
    )


def empty_model(config: LlavaSPConfig) -> LlavaSPForCausalLM:
    """Returns the model without any values, for its names and shapes."""
    with torch.device("meta"), explained("the configuration", config.name_or_path):
        return LlavaSPForCausalLM(config)


def saved_dtype(tensors: Tensors) -> torch.dtype:
    """Returns the type of the LLM's weights, which is that of a model assembled from parts."""
    return tensors[f"{LLM}embed_tokens.weight"].dtype


def read_llm(home: str) -> Tensors:
    """Opens a decoder LLM by its own names (`model.layers...`, `lm_head.weight`).

    Raises:
        UserError: There are no weights.
    """
    return _without_buffers(read_tensors(_weights_of(home)))


def read_tower(home: str) -> Tensors:
    """Opens a vision tower by our names; of a whole CLIP or SigLIP, the vision part."""
    tensors = read_tensors(_weights_of(home))
    whole = any(name.startswith("text_model.") for name in tensors)
    chosen = {name: tensor for name, tensor in tensors.items() if not whole or name.startswith("vision_model.")}
    return {tower_name(name): tensor for name, tensor in _without_buffers(chosen).items()}


def tower_name(name: str) -> str:
    """Returns our name of a tower's tensor; some versions of transformers put `vision_model.` before it."""
    return f"{TOWER}{name.removeprefix('vision_model.')}"


def llm_name(name: str) -> str:
    """Returns our name of a tensor of an LLM."""
    return name if name.startswith("lm_head.") else f"{LLM}{name.removeprefix('model.')}"


def fit(tensors: Tensors, config: LlavaSPConfig) -> Tensors:
    """Returns the tensors in the model's order, its vocabulary padded with rows of zeros.

    Raises:
        UserError: Tensors are missing, left over, or of another shape; the message names the first.
    """
    model = empty_model(config)
    wanted = {
        name: value.shape for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys
    }
    tensors = {name: tensor for name, tensor in tensors.items() if name not in model.all_tied_weights_keys}
    for name in tensors.keys() & VOCABULARY:
        if tensors[name].shape[0] == config.llm_vocab_size:
            tensors[name] = with_rows(tensors[name], config.text_config.vocab_size)
    for name in sorted(wanted.keys() | tensors.keys()):
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "checkpoint")
        if name not in tensors:
            raise UserError(f"The {part} does not fit its configuration: {name} is missing.")
        if name not in wanted:
            raise UserError(f"The {part} does not fit its configuration: {tensors[name].origin} is left over.")
        if tensors[name].shape != wanted[name]:
            raise UserError(
                f"The {part} does not fit its configuration: {tensors[name].origin} has the shape "
                f"{list(tensors[name].shape)}, not {list(wanted[name])}."
            )
    return {name: tensors[name] for name in wanted}


def with_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """Cuts rows off, or adds rows of zeros."""
    return tensor.then(lambda value: F.pad(value[:rows], (0, 0, 0, max(0, rows - value.shape[0]))))


def _weights_of(home: str, names: tuple[str, ...] = FULL_FILES) -> list[Path]:
    if files := find_weights(home, names):
        return files
    raise UserError(f"{home} holds no weights; there is no {' or '.join(names)}.")


def _without_buffers(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}


def _read_weights(path: str, card: Card, config: LlavaSPConfig, base: str | None, *, allow_other_base: bool) -> Tensors:
    if card.kind == "full":
        return read_tensors(_weights_of(path, FULL_FILES[:1]))  # no pickles: we write none
    parts = resolve_parts(path, card, base)
    if "model" in parts:
        tensors = read_checkpoint(parts["model"], allow_other_base=allow_other_base).tensors
    else:
        tensors = {llm_name(name): tensor for name, tensor in read_llm(parts["llm"]).items()}
        tensors |= read_tower(parts["vision_tower"])
    found = _fingerprint(tensors, config, parts)
    if not allow_other_base:
        check_base(path, card, base, found)
    if card.kind == "projector":
        own = read_tensors(find_weights(path, (PROJECTOR_NAME,)))
    else:
        lora, own = read_adapter(path, ADAPTER_FILES[:1])
        tensors = merge_lora(tensors, lora, path, empty_model(config), parts.get("llm") or parts["model"])
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(PROJECTOR)}
    return kept | own


def _fingerprint(tensors: Tensors, config: LlavaSPConfig, parts: dict[str, str]) -> dict[str, str]:
    """Returns the fingerprints of the LLM and the tower, of which no more than a page each is read."""
    model = empty_model(config).model
    found = {}
    for part, prefix, module in (("llm", LLM, model.language_model), ("vision_tower", TOWER, model.vision_tower)):
        names = [prefix + name for name, _ in module.named_parameters()]
        if missing := [name for name in names if name not in tensors]:
            home = parts.get(part) or parts["model"]
            raise UserError(f"{home} is too small a base: {len(missing)} tensors are missing, first {missing[0]}.")
        found[part] = fingerprint(nn.ParameterList(tensors[name].read().flatten()[:1].clone() for name in names))
    return found
