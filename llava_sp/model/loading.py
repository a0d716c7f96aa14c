"""The only code that loads and saves checkpoints; every kind is loaded by its path alone.

A checkpoint's folder holds its configuration, its processor, its card (`llava_sp.json`) and weights of one kind:

- `full`: all weights, as `save_pretrained` writes them;
- `projector`: `projector.safetensors`, all that stage 1 trains. The card names the LLM and the vision tower;
- `adapter`: a PEFT folder with the LoRA matrices and the whole projector. The card names what they stand on.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig
from transformers.utils import cached_file

from llava_sp.model.bases import check_base, check_processor_fits, check_sizes, model_type, resolve_parts
from llava_sp.model.card import CARD_NAME, Card, Kind
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.fingerprint import fingerprint
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.partial import load_adapter, load_projector, refuse_misfits, save_adapter, save_projector
from llava_sp.model.parts import (
    absolute,
    assemble,
    configure,
    explained,
    load_llm,
    load_tokenizer,
    load_tower,
    make_processor,
)
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.quantization import Quantization, compute_in, quantization_config
from llava_sp.model.trainable import plain_model, trainable_parameter_groups
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import staged
from llava_sp.utils.manifest import seal

SPATIAL_FIELDS = (
    "sfe_maps",
    "sfe_operator",
    "sfe_sides",
    "sfe_channels",
    "dfi_kernels",
    "dfi_stride",
    "dfi_fusion",
    "spatial_bias",
)
"""Fields of the configuration that make the spatial part, told by a checkpoint's card."""


def build(
    llm: str,
    vision_tower: str,
    *,
    variant: str = "cropping",
    overrides: dict[str, Any] | None = None,
    image_aspect_ratio: str = "pad",
    conversation_template: str = "v1",
    chat_template: str | None = None,
    max_length: int = 2048,
    dtype: torch.dtype | str = "auto",
    seed: int = 0,
    **llm_arguments: Any,
) -> tuple[LlavaSPForCausalLM, LlavaSPProcessor]:
    """Builds a model from parts: a pretrained LLM, a pretrained vision tower, and a new projector.

    Args:
        llm: Name or folder of a decoder LLM that transformers can load.
        vision_tower: Name or folder of a CLIP or SigLIP tower, whole or vision part alone.
        variant: A name of `llava_sp.model.variants.VARIANTS`.
        overrides: Fields of `LlavaSPConfig` in place of the variant's.
        image_aspect_ratio: `"square"`, `"pad"` or `"anyres"`, see `LlavaSPImageProcessor`. The last takes LLaVA-1.6's
            grids and `patch_merge_type="flat"`, unless `overrides` says otherwise.
        conversation_template: Name of the conversation that the model is tuned with.
        chat_template: The same conversation as a Jinja template, for `apply_chat_template`.
        max_length: Longest sequence in tokens, visual ones included.
        dtype: Type of the weights; `"auto"` takes the LLM's.
        seed: Seed of the projector's initialisation; the global random state is left alone.
        **llm_arguments: Passed on to the LLM's `from_pretrained` (`quantization_config`, `attn_implementation`).

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        UserError: A part cannot be loaded, or the variant does not fit the tower's grid.
    """
    tokenizer = load_tokenizer(llm, max_length)
    config = configure(
        llm, vision_tower, tokenizer, variant=variant, overrides=overrides, image_aspect_ratio=image_aspect_ratio
    )
    processor = make_processor(
        config,
        tokenizer,
        vision_tower,
        image_aspect_ratio=image_aspect_ratio,
        conversation_template=conversation_template,
        chat_template=chat_template,
    )
    parts = {"llm": absolute(llm), "vision_tower": absolute(vision_tower)}
    return _from_parts(config, parts, dtype=dtype, seed=seed, **llm_arguments), processor


def load(
    path: str | Path,
    base: str | None = None,
    dtype: torch.dtype | str = "auto",
    device_map: str | dict | None = None,
    quantization: Quantization | None = None,
    *,
    merge: bool = True,
    allow_other_base: bool = False,
    **llm_arguments: Any,
) -> tuple[LlavaSPForCausalLM | PeftModel, LlavaSPProcessor]:
    """Loads any checkpoint of this project by its path alone.

    Args:
        path: Folder or Hub name of a checkpoint of any kind, intermediate ones included.
        base: What a partial checkpoint stands on, in place of what its card names: a LLaVA-SP model, or an LLM (the
            vision tower is then the card's).
        dtype: Type of the weights; `"auto"` takes the checkpoint's.
        device_map: Where the weights go, as for transformers; `None` for the CPU.
        quantization: `"4bit"` or `"8bit"` to quantise the LLM's linear layers with bitsandbytes while loading.
        merge: Whether to merge LoRA into the LLM; otherwise a `PeftModel` is returned, its adapter trainable. LoRA is
            never merged into quantised weights, which would round it away: it is then at work beside them.
        allow_other_base: Takes a base although its weights are not those that the checkpoint was trained with.
        **llm_arguments: Passed on to `from_pretrained` of the model or of its LLM (`quantization_config` for settings
            of one's own, see `llava_sp.model.quantization`; `attn_implementation`).

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        UserError: There is no checkpoint, a part that it names is missing, its weights are damaged or do not fit, or
            it was trained with another base; the message names the folder.
    """
    path = str(path)
    card = read_card(path)
    with explained("the processor of the checkpoint", path):
        processor = LlavaSPProcessor.from_pretrained(path)
    if quantization is not None:
        llm_arguments["quantization_config"] = quantization_config(quantization)
    if card is None or card.kind == "full":
        model = _load_full(path, dtype=dtype, device_map=device_map, **llm_arguments)
        check_processor_fits(path, processor, model.config)
        return model, processor

    quantised = llm_arguments.get("quantization_config") is not None
    if quantised and isinstance(device_map, str) and device_map != "auto":
        llm_arguments["device_map"] = device_map  # where quantising is quick
    model = _load_base(path, card, base, allow_other_base, dtype=dtype, **llm_arguments)
    check_processor_fits(path, processor, model.config)
    with explained("the generation_config.json of the checkpoint", path):
        model.generation_config = GenerationConfig.from_pretrained(path)
    if card.kind == "projector":
        load_projector(model, path)
    else:
        model = load_adapter(model, path, trainable=not merge)
        if merge and quantised:
            model = model.get_base_model()
        elif merge:
            model = model.merge_and_unload()
            _remember_origin(model, {"model": absolute(path)})
    return place(model.eval(), device_map), processor


def save(
    model: nn.Module,
    processor: LlavaSPProcessor,
    folder: str | Path,
    *,
    stage: str,
    details: dict[str, Any] | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
    sealed: bool = True,
) -> Card:
    """Saves what is trained, and only that, in a form that `load` takes back by its path alone.

    The kind follows from the model: a `PeftModel` is saved as an adapter, a model that trains its projector alone as a
    projector, every other one in full.

    Args:
        model: The model, as it is trained.
        processor: Its processor.
        folder: Where to save; made if it is not there.
        stage: The stage that trained it, for the card.
        details: Whatever else the card is to tell.
        state_dict: The model's weights, where they have to be gathered first (ZeRO-3).
        sealed: Whether to wait until all is on the disk, and to write a manifest with the files' hashes.

    Returns:
        The card that was written.

    Raises:
        UserError: The files cannot be written, as on a full disk; what the folder held before is still there.
    """
    plain = plain_model(model)
    kind = checkpoint_kind(model)
    origin = plain.origin or {"model": absolute(plain.config.name_or_path)}  # the latter after `from_pretrained`
    card = Card(
        kind=kind,
        parts={} if kind == "full" else origin,
        fingerprint={} if kind == "full" else plain.fingerprint or {},
        stage=stage,
        conversation_template=processor.conversation_template,
        spatial={name: getattr(plain.config, name) for name in SPATIAL_FIELDS},
        details=details or {},
    )
    try:
        with staged(folder, last=CARD_NAME) as staging:
            if kind == "full":
                plain.save_pretrained(staging, state_dict=state_dict)
            else:
                config = copy.copy(plain.config)
                config.__dict__.pop("quantization_config", None)  # how this run held its base is not the checkpoint's
                config.save_pretrained(staging)
                plain.generation_config.save_pretrained(staging)
            if kind == "adapter":
                save_adapter(model, staging, origin.get("model") or origin["llm"], state_dict)
            if kind == "projector":
                save_projector(model, staging, state_dict)
            processor.save_pretrained(staging)
            card.write(staging)
            if sealed:
                seal(staging)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Cannot save to {folder}, and nothing of it was kept: {error}. Is the disk full, or the folder read-only?"
        ) from error
    return card


def checkpoint_kind(model: nn.Module) -> Kind:
    """Returns the kind of checkpoint that holds all that a model trains."""
    if isinstance(model, PeftModel):
        return "adapter"
    return "projector" if set(trainable_parameter_groups(model)) == {"projector"} else "full"


def read_card(path: str) -> Card | None:
    """Returns a checkpoint's card; `None` for a LLaVA-SP folder without one, which must hold all weights.

    Raises:
        UserError: The path is no LLaVA-SP checkpoint; the message says what it is instead.
    """
    found = find_card(path)
    if found is not None:
        return Card.read(found)
    kind = model_type(path)
    if kind == LlavaSPConfig.model_type:
        return None
    mend = ""
    if kind.startswith("llava"):
        mend = f" Import it first: python -m llava_sp.convert official --checkpoint {path} --output FOLDER."
    raise UserError(f"{path} is no LLaVA-SP checkpoint; its model type is {kind!r}.{mend}")


def find_card(path: str, **where: Any) -> str | None:
    """Returns the file of a checkpoint's card, `None` where a folder or Hub repository has none.

    Args:
        path: The folder or Hub name.
        **where: See `llava_sp.model.hub.WHERE`.
    """
    with explained("a checkpoint", path):
        return cached_file(path, CARD_NAME, _raise_exceptions_for_missing_entries=False, **where)


def is_partial(path: str, **where: Any) -> bool:
    """Tells whether the checkpoint in a folder or of a Hub name needs other weights too; see `find_card`."""
    found = find_card(path, **where)
    return found is not None and Card.read(found).kind != "full"


def _from_parts(
    config: LlavaSPConfig, parts: dict[str, str], *, dtype: torch.dtype | str, seed: int = 0, **llm_arguments: Any
) -> LlavaSPForCausalLM:
    llm = load_llm(parts["llm"], dtype, **llm_arguments)
    compute_in(llm, llm.dtype)
    model = assemble(config, load_tower(parts["vision_tower"], llm.dtype), llm, seed=seed)
    _remember_origin(model, parts)
    return model


def _remember_origin(model: LlavaSPForCausalLM, parts: dict[str, str]) -> None:
    """Keeps what a partial checkpoint of this model will stand on, while the weights are still as they were loaded."""
    model.origin = parts
    model.fingerprint = {
        "llm": fingerprint(model.model.language_model),
        "vision_tower": fingerprint(model.model.vision_tower),
    }


def _load_full(path: str, **arguments: Any) -> LlavaSPForCausalLM:
    with explained("the checkpoint", path):
        model, info = LlavaSPForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    misfits = {*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])}
    refuse_misfits(misfits, f"The checkpoint {path} does not fit its own configuration", "Was it saved completely?")
    compute_in(model, model.dtype)
    _remember_origin(model, {"model": absolute(path)})
    return model.eval()


def _load_base(path: str, card: Card, base: str | None, allow_other_base: bool, **arguments: Any) -> LlavaSPForCausalLM:
    """Loads what a partial checkpoint stands on: a whole LLaVA-SP model, or an LLM and a tower."""
    parts = resolve_parts(path, card, base)
    with explained("the configuration of the checkpoint", path):
        config = LlavaSPConfig.from_pretrained(path)
    if "model" in parts:
        model, _ = load(parts["model"], allow_other_base=allow_other_base, **arguments)
        if config.image_grid_pinpoints is not None:
            model.model.lay_out_tiles(config.image_grid_pinpoints, config.patch_merge_type)
    else:
        model = _from_parts(config, parts, **arguments)
        check_sizes(path, model)
    if not allow_other_base:
        check_base(path, card, base, model.fingerprint or {})
    return model


def place(model: nn.Module, device_map: str | dict | None) -> nn.Module:
    """Puts a model's weights where a device map says, as for transformers; returns it."""
    if device_map is None:
        return model
    if isinstance(device_map, str) and device_map != "auto":
        return model.to(device_map)
    from accelerate import dispatch_model, infer_auto_device_map

    if device_map == "auto":
        device_map = infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
    return dispatch_model(model, device_map)
