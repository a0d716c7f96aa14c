"""Names and values that users of LLaVA and of older versions of transformers type, and what becomes of them."""

import ast
import os
from pathlib import Path
from typing import Any

from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

RENAMED = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "lora_weight_path": "init_from"}
"""Arguments that transformers renamed, and LLaVA's name for the LoRA to continue."""

GONE = {
    "save_safetensors": "weights are always saved as safetensors",
    "overwrite_output_dir": "a folder with another run's files is never overwritten; remove it yourself",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
}
"""Arguments that transformers dropped, and what holds instead."""

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "mm_projector_type": (("mlp2x_gelu",), "the patch projector is LLaVA-1.5's"),
    "mm_vision_select_feature": (("patch",), "the CLS token is not used"),
    "mm_use_im_start_end": ((False,), "images are marked by <image> alone"),
    "freeze_mm_mlp_adapter": ((False,), "the projector learns in both stages"),
    "lora_bias": (("none",), "LoRA tunes no biases"),
    "label_smoothing_factor": ((0.0,), "transformers smooths this model's loss without shifting the labels by one"),
    "neftune_noise_alpha": ((None,), "noise on the embeddings would break exact resumption"),
}
"""Arguments of which some values only are supported: these, and why."""

IDLE: dict[str, Any] = {
    "mm_use_im_patch_token": False,
    "mpt_attn_impl": None,
    "cache_dir": None,
    "lazy_preprocess": True,
    "is_multimodal": True,
}
"""Arguments without effect, and the value that needs no word about it."""


def read_renamed(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Puts today's names for yesterday's in a command line.

    Args:
        argv: Flags, as `--name value` or `--name=value`.

    Returns:
        The flags under today's names, and values that have no flag of their own (`warmup_ratio` is a `warmup_steps`
        below one).
    """
    kept: list[str] = []
    values: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        position += 1
        if name in RENAMED:
            kept.append(f"--{RENAMED[name]}{equals}{value}")
        elif name == "warmup_ratio" or name in GONE:
            if not equals and position < len(argv) and not argv[position].startswith("--"):
                value = argv[position]
                position += 1
            if name == "warmup_ratio":
                values["warmup_steps"] = _ratio(value)
            else:
                logger.warning("%s has no effect: %s.", flag, GONE[name])
        else:
            kept.append(argv[position - 1])
    return kept, values


def apply_legacy_flags(given: dict[str, Any]) -> None:
    """Follows, ignores with a word, or refuses LLaVA's flags; changes `given` in place.

    Raises:
        UserError: A value is not supported, or two flags contradict each other.
    """
    for name, (supported, reason) in ONLY.items():
        if name in given and given[name] not in supported:
            values = " or ".join(repr(value) for value in supported if value is not None)
            allowed = f"Only {values} is supported" if values else "It is not supported"
            raise UserError(f"--{name} {given[name]}: {allowed[0].lower()}{allowed[1:]}, for {reason}.")
    for name, silent in IDLE.items():
        if name in given and given[name] != silent:
            logger.warning("--%s %s has no effect here.", name, given[name])
    if given.get("freeze_backbone") and not given.get("lora_enable"):
        given["tune_mm_mlp_adapter"] = True
    if given.get("tune_mm_mlp_adapter") and given.get("lora_enable"):
        raise UserError(
            "--tune_mm_mlp_adapter (stage 1: the LLM stays as it is) contradicts --lora_enable (stage 2); give one."
        )
    if given.get("image_aspect_ratio") != "anyres":
        for name in ("mm_patch_merge_type", "image_grid_pinpoints"):
            if given.get(name) not in (None, "flat"):
                raise UserError(f"--{name} {given[name]} is about several tiles; give --image_aspect_ratio anyres too.")
    read_pinpoints(given.get("image_grid_pinpoints"))


def follow_adapter(values: dict[str, Any]) -> None:
    """Turns LLaVA's `--pretrain_mm_mlp_adapter` into `--init_from`; changes `values` in place.

    Args:
        values: What one YAML file or the command line gives, by name.

    Raises:
        UserError: The two are both given and differ, or it names a file of LLaVA's format.
    """
    if adapter := values.pop("pretrain_mm_mlp_adapter", None):
        folder = _stage_one_folder(adapter)
        if values.setdefault("init_from", folder) != folder:
            raise UserError(
                f"--pretrain_mm_mlp_adapter {adapter} and --init_from {values['init_from']} differ; give one."
            )


def read_pinpoints(text: str | None) -> list[list[int]] | None:
    """Turns LLaVA's list of `(width, height)` into the configuration's `[height, width]`; `None` stays `None`.

    Raises:
        UserError: It is no such list.
    """
    if text is None:
        return None
    try:
        return [[int(height), int(width)] for width, height in ast.literal_eval(text)]
    except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        raise UserError(
            f'--image_grid_pinpoints {text}: a list of sizes is needed, such as "[(336, 672), (672, 336)]".'
        ) from None


def _stage_one_folder(adapter: str) -> str:
    """Returns the checkpoint folder meant by LLaVA's `.../mm_projector.bin`."""
    path = Path(adapter)
    if path.suffix != ".bin":
        return adapter
    if os.path.isfile(path):
        raise UserError(
            f"--pretrain_mm_mlp_adapter {adapter} is a file in LLaVA's format; convert its folder first with "
            "'python -m llava_sp.convert official' and give the result to --init_from."
        )
    return str(path.parent)


def _ratio(value: str) -> float:
    try:
        ratio = float(value)
    except ValueError:
        raise UserError(f"--warmup_ratio {value}: a number is needed.") from None
    if not 0 <= ratio < 1:
        raise UserError(f"--warmup_ratio {value}: a share of all steps from 0 to below 1 is needed.")
    return ratio
