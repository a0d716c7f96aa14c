"""Which run an output folder belongs to, and what it takes to continue from one of its checkpoints."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from llava_sp.model.card import CARD_NAME
from llava_sp.model.loading import find_card
from llava_sp.model.parts import absolute
from llava_sp.train.arguments import SPATIAL_FIELDS
from llava_sp.train.command_line import zero_stage
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, sha256_file, write_json
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

RUN_NAME = "run.json"
"""What the run of an output folder is: the arguments that decide its result. Written before the first step."""

METRICS_NAME = "metrics.json"
"""Written last of all: its presence says that the run is complete."""

STAGING = ".saving"
"""A checkpoint grows below this folder and moves to its place when it is whole."""

RESULTS = ("checkpoint-*", "*.safetensors", "*.bin", "*.json", "*.pt", "*.pth")
"""What would be overwritten or mistaken for this run's. Other files, such as a log, are left alone."""

DRY_SAVE = ".dry_save"
"""Where saving is tried before the first step."""

IDENTITY = (
    *("stage", "model_name_or_path", "vision_tower", "variant", "version", *SPATIAL_FIELDS, "mm_vision_select_layer"),
    *("lora_r", "lora_alpha", "lora_dropout", "image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints"),
    *("model_max_length", "group_by_modality_length"),
    *("global_batch_size", "per_device_train_batch_size", "num_train_epochs", "max_steps", "seed", "data_seed"),
    *("learning_rate", "mm_projector_lr", "weight_decay", "warmup_steps", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "loss_average", "label_smoothing_factor"),
)
"""Arguments that decide the result of a run. Two runs that agree on them (and on data and start) are the same run."""


def run_identity(run: Any) -> dict[str, Any]:
    """Returns what makes this run this run: arguments, data, and the checkpoint that it starts from.

    Args:
        run: The `RunArguments`.
    """
    values: dict[str, Any] = {"stage": run.model.stage}
    for source in (run.model, run.data, run.training):
        values.update({name: getattr(source, name) for name in IDENTITY if hasattr(source, name)})
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    if run.model.bits < 16:
        values.update({name: getattr(run.model, name) for name in ("bits", "double_quant", "quant_type")})
    values["zero_stage"] = zero_stage(run.training.deepspeed)
    values["image_folder"] = str(Path(run.data.image_folder).resolve()) if run.data.image_folder else None
    data = Path(run.data.data_path)
    values["data"] = {"path": str(data.resolve()), "bytes": data.stat().st_size}
    if run.model.init_from:
        card = find_card(run.model.init_from) or cached_file(run.model.init_from, "config.json")
        values["init_from"] = {"path": absolute(run.model.init_from), "card_sha256": sha256_file(card)}
    return values


def claim_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Makes an output folder this run's own, or sees that it is.

    The record of a run that came to no checkpoint gives way: it failed at its start, and now the command is mended.

    Raises:
        UserError: The folder holds another run's files, or a model from elsewhere.
    """
    record = folder / RUN_NAME
    others = sorted({path.name for pattern in RESULTS for path in folder.glob(pattern)} - {RUN_NAME})
    if record.is_file() and others:
        before = read_json(record)
        differing = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"{folder} holds another run's files: {name} is {before.get(name)!r} there and {identity.get(name)!r} "
                f"here{f' ({len(differing)} arguments differ)' if len(differing) > 1 else ''}. Give another "
                "--output_dir, or remove that folder."
            )
        return
    if others:
        raise UserError(
            f"{folder} holds a model or checkpoints of another origin ({', '.join(others[:3])}). Give an empty or "
            "new --output_dir."
        )
    write_json(record, identity)


def checkpoints(folder: Path) -> list[Path]:
    """Returns a run's checkpoints, oldest first; they are whole, for they grow elsewhere."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_resume(wanted: str | None, folder: Path, *, ranks: int, deepspeed: bool) -> Path | None:
    """Returns the checkpoint to continue from, None for a fresh start.

    Args:
        wanted: `--resume_from_checkpoint`: a path, or `auto` (like nothing at all) for the newest one of the run.
        folder: The run's output folder.
        ranks: Number of processes of this run.
        deepspeed: Whether DeepSpeed drives this run.

    Raises:
        UserError: The checkpoint is not there, or lacks what an exact continuation needs.
    """
    if wanted in (None, "auto", "True", "true"):
        found = checkpoints(folder)
        if not found:
            return None
        chosen = found[-1]
    else:
        chosen = Path(wanted)
        if not chosen.is_dir():
            raise UserError(f"--resume_from_checkpoint {wanted}: there is no such folder.")
    check_resumable(chosen, ranks=ranks, deepspeed=deepspeed)
    return chosen


def check_resumable(checkpoint: Path, *, ranks: int, deepspeed: bool) -> None:
    """Checks that a checkpoint holds all the state of a run with so many ranks.

    Raises:
        UserError: A file is missing, or another number of ranks wrote it; the message names it.
    """
    written_by = max(len(list(checkpoint.glob("rng_state_*.pth"))), 1)
    if written_by != ranks:
        raise UserError(
            f"{checkpoint} was written by {written_by} rank(s) and this run has {ranks}; continue with as many ranks, "
            f"or start a new run from its weights with --init_from {checkpoint}."
        )
    needed = ["trainer_state.json", CARD_NAME, "scheduler.pt"]
    needed += [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    needed.append("latest" if deepspeed else "optimizer.pt")
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        raise UserError(
            f"{checkpoint} lacks {', '.join(missing)}, so the run cannot continue exactly from it (was it written "
            f"{'without' if deepspeed else 'with'} DeepSpeed?). Give another checkpoint, or start a new run from its "
            f"weights with --init_from {checkpoint}."
        )


def is_complete(folder: Path) -> bool:
    """Whether the run of an output folder has come to its end."""
    return (folder / METRICS_NAME).is_file()


def move_into_place(staging: Path, output: Path, *, keep: int | None) -> None:
    """Moves a checkpoint that is whole from its staging folder to its place, and removes the oldest beyond `keep`."""
    for whole in checkpoints(staging):
        shutil.rmtree(output / whole.name, ignore_errors=True)  # of the same step, from before a resumption
        whole.rename(output / whole.name)
    staging.rmdir()
    remove_surplus(output, keep)


def remove_surplus(folder: Path, keep: int | None) -> None:
    """Removes the oldest checkpoints beyond `keep`."""
    found: Sequence[Path] = checkpoints(folder)
    if keep is None or keep < 1:
        return
    for path in found[:-keep]:
        shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Removes what a run that was killed while saving left behind."""
    for leftover in (folder / STAGING, folder / DRY_SAVE):
        if leftover.exists():
            logger.warning("Removing a checkpoint that was not completed: %s", leftover)
            shutil.rmtree(leftover)
