"""Import of official LLaVA-SP checkpoints, and of LLaVA-1.5's original layout: the variant without spatial tokens.

Full checkpoints, LoRA outputs, and the projector alone are told apart by the files in their folder. The result is
always a full checkpoint of this project: LoRA is merged, as the official loader does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llava_sp.convert.layout import Layout, read_layout
from llava_sp.convert.tensors import (
    ADAPTER_FILES,
    EXTRA_FILES,
    FULL_FILES,
    PROJECTOR_FILES,
    find_weights,
    read_tensors,
)
from llava_sp.data.conversation import get_template
from llava_sp.model import loading, parts
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import new_folder, read_json

TOWER_PREFIX = "vision_tower.vision_tower."
LLM_PREFIXES = ("layers.", "embed_tokens.", "norm.", "lm_head.")
LLM_TYPES = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}


@dataclass
class Report:
    """What an import found.

    Args:
        source: What the folder held: `full`, `lora` or `projector`.
        fields: The variant, as fields of the configuration.
        initialised: Official tensors that were missing, allowed by name, and are new.
        left_over: Official tensors that were not used: allowed by name, or never read by the official code either.
    """

    source: str
    fields: dict[str, Any]
    initialised: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """An official checkpoint's folder, read but not yet understood.

    Args:
        folder: The folder.
        kind: `full`, `lora` or `projector`.
        config: Its `config.json`; empty where there is none.
        tensors: Its tensors but LoRA's, named relative to the official `model.`; the head is `lm_head.weight`.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def select(self, chosen: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        """Returns the tensors whose names are chosen."""
        return {name: tensor for name, tensor in self.tensors.items() if chosen(name)}


def import_official(
    checkpoint: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    conversation_template: str = "v1",
    allow_missing: Iterable[str] = (),
    allow_left_over: Iterable[str] = (),
) -> Report:
    """Converts an official checkpoint into a full checkpoint of this project.

    Args:
        checkpoint: Folder of the official checkpoint.
        output: Folder to write; it must not exist, or be empty.
        base: The LLM that a LoRA or projector output stands on.
        vision_tower: The vision tower, in place of the one that `config.json` names.
        conversation_template: Template that the model was tuned with.
        allow_missing: Official names of tensors that may be missing; they are newly initialised.
        allow_left_over: Official names of tensors that may be ignored.

    Raises:
        UserError: The folder is no such checkpoint, or tensors are missing, left over, or of an unexpected shape.
    """
    with new_folder(output) as folder:
        source = read_source(Path(checkpoint))
        projector = source.select(lambda name: not name.startswith((*LLM_PREFIXES, TOWER_PREFIX)))
        layout = read_layout({name: tensor.shape for name, tensor in projector.items()})
        report = _account_for(source.kind, layout, projector, set(allow_missing), set(allow_left_over))

        tower_name = vision_tower or _tower_name(source)
        llm = _load_llm(source, base)
        tower = _load_tower(source, tower_name)
        tokenizer_home = str(source.folder) if source.kind == "full" else _require_base(source, base)
        tokenizer = parts.load_tokenizer(tokenizer_home, source.config.get("tokenizer_model_max_length", 2048))
        fields = {**_vision_fields(source.config), **layout.fields}
        image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        config = parts.join_configs(llm.config, tower.config, image_token_id, fields)
        model = parts.assemble(config, tower, llm)
        _fill_projector(model, layout, projector)
        template = get_template(conversation_template)
        processor = parts.make_processor(
            config,
            tokenizer,
            tower_name,
            image_aspect_ratio=_aspect_ratio(source.config),
            conversation_template=template.name,
            chat_template=template.chat_template(),
        )
        details = {"imported_from": str(checkpoint), "initialised": report.initialised, "left_over": report.left_over}
        loading.save(model, processor, folder, stage="import", details=details)
    return report


def read_source(folder: Path) -> Source:
    """Reads an official checkpoint's folder.

    Raises:
        UserError: It is none; the message lists the files that were looked for.
    """
    if not folder.is_dir():
        raise UserError(f"The checkpoint {folder} is not a folder.")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if find_weights(folder, ADAPTER_FILES):
        kind, files = "lora", find_weights(folder, EXTRA_FILES)
        if not files:
            raise UserError(f"{folder} holds an adapter but no {EXTRA_FILES[-1]}, without which there is no projector.")
    elif files := find_weights(folder, FULL_FILES):
        kind = "full"
    elif files := find_weights(folder, PROJECTOR_FILES):
        kind = "projector"
    else:
        looked_for = ", ".join((*FULL_FILES, *ADAPTER_FILES, *PROJECTOR_FILES))
        raise UserError(f"{folder} holds no weights; none of {looked_for} is there.")
    if kind == "full" and config.get("model_type") not in LLM_TYPES:
        raise UserError(
            f"{folder}/config.json has model type {config.get('model_type')!r}; official checkpoints have one of "
            f"{', '.join(LLM_TYPES)}."
        )
    tensors = {_relative_name(name): tensor for name, tensor in read_tensors(files).items()}
    return Source(folder, kind, config, tensors)


def _relative_name(name: str) -> str:
    """Strips the prefixes of DeepSpeed and PEFT, and the official `model.`."""
    for prefix in ("module.", "base_model.model.", "model."):
        name = name.removeprefix(prefix)
    return name


def _account_for(
    kind: str,
    layout: Layout,
    projector: dict[str, torch.Tensor],
    allow_missing: set[str],
    allow_left_over: set[str],
) -> Report:
    """Accounts for every tensor of the projector; what does not fit is an error that lists it."""
    wanted = {move.source for move in layout.moves.values()}
    missing = sorted(wanted - projector.keys())
    left_over = sorted(projector.keys() - wanted)
    problems = []
    if refused := [name for name in missing if name not in allow_missing]:
        problems.append(f"missing: {', '.join(refused)} (allow with --allow-missing NAME; they are newly initialised)")
    if refused := [name for name in left_over if name not in allow_left_over | layout.unused]:
        problems.append(f"left over: {', '.join(refused)} (allow with --allow-left-over NAME; they are ignored)")
    if problems:
        raise UserError(f"The checkpoint's projector is not what its keys promise. {'; '.join(problems)}.")
    return Report(kind, layout.fields, missing, left_over)


def _tower_name(source: Source) -> str:
    name = source.config.get("mm_vision_tower")
    if not name:
        raise UserError(f"{source.folder}/config.json names no mm_vision_tower; give --vision-tower.")
    beside = source.folder / name
    return str(beside) if beside.is_dir() else name


def _require_base(source: Source, base: str | None) -> str:
    if base is None:
        raise UserError(f"{source.folder} holds a {source.kind} output, which stands on an LLM; give it with --base.")
    return base


def _load_llm(source: Source, base: str | None) -> PreTrainedModel:
    if source.kind == "full":
        ours = ("model_type", "architectures")
        fields = {name: value for name, value in source.config.items() if name not in ours and value is not None}
        config = CONFIG_MAPPING[LLM_TYPES[source.config["model_type"]]].from_dict(fields)
        state = source.select(lambda name: name.startswith(LLM_PREFIXES))
        state = {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in state.items()}
        with torch.device("meta"):
            llm_class = type(AutoModelForCausalLM.from_config(config))
        return _from_state(llm_class, config, state, "LLM")
    llm = parts.load_llm(_require_base(source, base))
    if source.kind == "projector":
        return llm
    with parts.explained("the adapter", str(source.folder)):
        adapted = PeftModel.from_pretrained(llm, source.folder)
    found = read_tensors(find_weights(source.folder, ADAPTER_FILES)).keys()
    wanted = get_peft_model_state_dict(adapted).keys()
    if misfits := sorted(found ^ wanted):
        raise UserError(f"The adapter does not fit the LLM {base}: {len(misfits)} tensors differ, first {misfits[0]}.")
    return adapted.merge_and_unload()


def _load_tower(source: Source, name: str) -> PreTrainedModel:
    state = source.select(lambda key: key.startswith(TOWER_PREFIX))
    if not state:
        return parts.load_tower(name)
    config = parts.load_vision_config(name)
    with torch.device("meta"):
        tower_class = type(AutoModel.from_config(config))
    return _from_state(
        tower_class, config, {key.removeprefix(TOWER_PREFIX): tensor for key, tensor in state.items()}, "vision tower"
    )


def _from_state(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, torch.Tensor], what: str
) -> PreTrainedModel:
    dtype = next(iter(state.values())).dtype
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    problems = [*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])]
    if problems:
        raise UserError(
            f"The checkpoint's {what} does not fit: {len(problems)} tensors are missing, left over or of another "
            f"shape, first {min(problems)}."
        )
    return model


def _vision_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Returns LLaVA's own fields under our names."""
    return {
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full"
        if config.get("mm_vision_select_feature") == "cls_patch"
        else "default",
    }


def _aspect_ratio(config: dict[str, Any]) -> str:
    ratio = config.get("image_aspect_ratio", "square")
    if ratio not in ("square", "pad"):
        raise UserError(f"config.json asks for image_aspect_ratio {ratio!r}; only 'square' and 'pad' are supported.")
    return ratio


def _fill_projector(model: LlavaSPForCausalLM, layout: Layout, tensors: dict[str, torch.Tensor]) -> None:
    state = model.model.multi_modal_projector.state_dict()
    if strangers := sorted(layout.moves.keys() - state.keys()) or sorted(state.keys() - layout.moves.keys()):
        raise UserError(f"The checkpoint's projector has another layout than its keys promise, first {strangers[0]}.")
    for ours, (official, rearrange) in layout.moves.items():
        if official not in tensors:
            continue  # allowed by name; the tensor stays newly initialised
        tensor = rearrange(tensors[official]) if rearrange else tensors[official]
        if tensor.shape != state[ours].shape:
            raise UserError(
                f"{official} has the shape {list(tensors[official].shape)}, which does not fit the LLM and the tower."
            )
        state[ours].copy_(tensor)
