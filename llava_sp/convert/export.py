"""A checkpoint of this project in other forms: merged into a full one, or in the layout of the official scripts."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llava_sp.convert.layout import Layout, export_layout, read_as
from llava_sp.convert.ours import (
    LLM,
    PROJECTOR,
    TOWER,
    VOCABULARY,
    Checkpoint,
    read_checkpoint,
    saved_dtype,
    with_rows,
    write_checkpoint,
)
from llava_sp.convert.source import TOWER_PREFIX
from llava_sp.convert.tensors import Tensors, find_file
from llava_sp.convert.verify import Agreement, verify_copy, verify_export
from llava_sp.convert.writing import output_folder, write_weights
from llava_sp.model.parts import absolute, explained
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_json

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
OFFICIAL_CLASSES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
OFFICIAL_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral"}


def merge(
    path: str,
    output: str,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> Agreement | None:
    """Writes a checkpoint of any kind as a full one: LoRA merged, a projector together with what it stands on.

    Args:
        path: Folder or Hub name of the checkpoint.
        output: Folder to write; it must not exist, or be empty.
        base: What it stands on, in place of what its card names.
        allow_other_base: Takes a base although its weights are not those that it was trained with.
        dtype: Type to write; the LLM's where it is None.
        verify: Whether to compare the logits of the unmerged checkpoint and the result.

    Raises:
        UserError: The checkpoint or its base cannot be read, or the result's logits differ.
    """
    with output_folder(output) as folder:
        checkpoint = read_checkpoint(path, base, allow_other_base=allow_other_base)
        dtype = dtype or saved_dtype(checkpoint.tensors)
        write_checkpoint(folder, checkpoint, dtype)
        return verify_copy(path, base, folder, dtype, allow_other_base=allow_other_base) if verify else None


def to_official(
    path: str,
    output: str,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    tokenizer: str | None = None,
    tower_inside: bool = True,
    allow_other_base: bool = False,
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> Agreement | None:
    """Writes a checkpoint of any kind as a full official one.

    Args:
        path: Folder or Hub name of the checkpoint.
        output: Folder to write; it must not exist, or be empty.
        base: What it stands on, in place of what its card names.
        vision_tower: Name that the official code is to load the tower by; the one it was built from where it is None.
        tokenizer: Where the LLM's own tokenizer files lie; the LLM that it was built from where it is None.
        tower_inside: Whether to write the tower's weights too.
        allow_other_base: Takes a base although its weights are not those that it was trained with.
        dtype: Type to write; the LLM's where it is None.
        verify: Whether to compare the logits of the checkpoint and the result, evaluated as an official one.

    Raises:
        UserError: The official code has no such model, or a part cannot be found.
    """
    with output_folder(output) as folder:
        checkpoint = read_checkpoint(path, base, allow_other_base=allow_other_base)
        config = checkpoint.config
        if config.text_config.model_type not in OFFICIAL_TYPES:
            raise UserError(
                f"The official code has no LLM of the type {config.text_config.model_type!r}, only "
                f"{', '.join(OFFICIAL_TYPES)}."
            )
        if config.vision_config.model_type != "clip_vision_model":
            raise UserError(f"The official code has CLIP towers only, no {config.vision_config.model_type!r}.")
        tower_home = vision_tower or config.vision_config.name_or_path
        if not tower_home:
            raise UserError(f"{path} does not tell what its vision tower is called; give --vision-tower.")
        tower_home = absolute(tower_home)
        layout = export_layout(checkpoint.card.spatial, config.grid_side)
        dtype = dtype or saved_dtype(checkpoint.tensors)
        write_json(folder / "config.json", _official_config(checkpoint, tower_home, dtype))
        checkpoint.generation.save_pretrained(folder)
        _copy_tokenizer(tokenizer or config.text_config.name_or_path, folder)
        tensors = _official_tensors(checkpoint, layout, tower_inside=tower_inside)
        write_weights(folder, tensors, dtype)
        if not verify:
            return None
        return verify_export(path, base, folder, tower_home, dtype, allow_other_base=allow_other_base)


def _official_tensors(checkpoint: Checkpoint, layout: Layout, *, tower_inside: bool) -> Tensors:
    tensors: Tensors = {}
    rows = checkpoint.config.llm_vocab_size or checkpoint.config.text_config.vocab_size
    for ours, tensor in checkpoint.tensors.items():
        if ours in VOCABULARY:
            tensor = with_rows(tensor, rows)
        if ours.startswith(PROJECTOR):
            official = layout.official(ours.removeprefix(PROJECTOR))
            if read_as(official.name) != official.name:
                _check_shared(checkpoint.tensors, ours)
            tensors[f"model.{official.name}"] = tensor.then(official.to_official) if official.to_official else tensor
        elif not ours.startswith(TOWER):
            tensors[ours.replace(LLM, "model.")] = tensor
        elif tower_inside:
            tensors[f"model.{TOWER_PREFIX}vision_model.{ours.removeprefix(TOWER)}"] = tensor
    return tensors


def _check_shared(tensors: Tensors, ours: str) -> None:
    first = re.sub(r"scales\.\d+", "scales.0", ours)
    if not torch.equal(tensors[ours].read(), tensors[first].read()):
        raise UserError(
            "The official code applies the first DFI scale's value projection to all scales; here they differ "
            f"({ours}), so it would compute something else."
        )


def _official_config(checkpoint: Checkpoint, tower_home: str, dtype: torch.dtype) -> dict[str, Any]:
    config = checkpoint.config
    text = config.text_config.to_diff_dict()
    for name in ("_name_or_path", "dtype", "transformers_version"):
        text.pop(name, None)
    rope = _old_rope(text.pop("rope_parameters"))
    model_type = config.text_config.model_type
    return {
        **text,
        **rope,
        "vocab_size": config.llm_vocab_size,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "architectures": [OFFICIAL_CLASSES[model_type]],
        "model_type": OFFICIAL_TYPES[model_type],
        "mm_vision_tower": tower_home,
        "mm_hidden_size": config.feature_channels,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.vision_feature_select_strategy == "full" else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": config.patch_merge_type,
        "image_aspect_ratio": checkpoint.processor.image_processor.image_aspect_ratio,
        # LLaVA's sizes are (width, height).
        "image_grid_pinpoints": [[width, height] for height, width in config.image_grid_pinpoints or []] or None,
        "tokenizer_model_max_length": checkpoint.processor.tokenizer.model_max_length,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }


def _old_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rotary settings as transformers 4 writes them."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    if scaling.get("rope_type") == "default":
        return {"rope_theta": parameters["rope_theta"], "rope_scaling": None}
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": {**scaling, "type": scaling["rope_type"]}}


def _copy_tokenizer(home: str, folder: Path) -> None:
    """Copies the LLM's own tokenizer files: ours has `<image>`, which the official code must not find."""
    files = [file for name in TOKENIZER_FILES if home and (file := _find_tokenizer_file(home, name))]
    if not any(file.name in TOKENIZER_FILES[:2] for file in files):
        raise UserError(f"The LLM's own tokenizer files are not found at {home!r}; say where they are by --tokenizer.")
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _find_tokenizer_file(home: str, name: str) -> Path | None:
    with explained("the LLM's tokenizer files (say where they are by --tokenizer)", home):
        return find_file(home, name)
