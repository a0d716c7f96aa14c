"""Which run an output folder belongs to, and what it takes to continue from one of its checkpoints."""

import math
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from llava_sp.model.card import CARD_NAME
from llava_sp.model.loading import find_card
from llava_sp.model.parts import absolute
from llava_sp.train.arguments import SPATIAL_ARGUMENTS
from llava_sp.train.command_line import zero_stage
from llava_sp.train.elastic import REPARTITIONED
from llava_sp.train.events import read, record
from llava_sp.train.pickles import check_pickles
from llava_sp.train.watchdog import FOLDER_NAME as PROGRESS
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, sha256_file, write_json
from llava_sp.utils.logging import get_logger
from llava_sp.utils.manifest import MANIFEST_NAME, seal, sync, verify

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
    *("stage", "model_name_or_path", "vision_tower", "mm_vision_select_layer"),
    *("variant", "version", *SPATIAL_ARGUMENTS),
    *("lora_r", "lora_alpha", "lora_dropout", "image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints"),
    *("model_max_length", "group_by_modality_length"),
    *("global_batch_size", "per_device_train_batch_size", "num_train_epochs", "max_steps", "seed", "data_seed"),
    *("dataloader_drop_last", "average_tokens_across_devices"),
    *("learning_rate", "mm_projector_lr", "weight_decay", "warmup_steps", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("bf16", "fp16", "loss_average", "label_smoothing_factor"),
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
    sealed = {str(path.relative_to(folder)) for path in folder.glob(f"{STAGING}/checkpoint-*/{MANIFEST_NAME}")}
    others = sorted({path.name for pattern in RESULTS for path in folder.glob(pattern)} - {RUN_NAME} | sealed)
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
    with suppress(UserError):  # on a full disk, what is there serves
        if record.is_file() and read_json(record) == identity:
            return
    write_json(record, identity)


def checkpoints(folder: Path) -> list[Path]:
    """Returns a run's checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the step after which a run's checkpoint was written."""
    return int(checkpoint.name.split("-")[1])


def find_resume(wanted: str | None, folder: Path, *, deepspeed: bool) -> Path | None:
    """Returns the checkpoint to continue from, None for a fresh start.

    Checkpoints that are damaged are set aside, each with a warning, and the newest good one is taken.

    Args:
        wanted: `--resume_from_checkpoint`: a path, or `auto` (like nothing at all) for the newest one of the run. The
            path is where the command begins: once it has completed checkpoints of its own, it continues from those.
        folder: The run's output folder.
        deepspeed: Whether DeepSpeed drives this run.

    Raises:
        UserError: The checkpoint is not there, is damaged, or lacks what an exact continuation needs.
    """
    found = checkpoints(folder)
    if wanted not in (None, "auto", "True", "true"):
        begun = _when_begun(Path(wanted), folder)
        found = [one for one in found if _completed(one) > begun]
        if not found:
            return _begin_from(Path(wanted), deepspeed=deepspeed)
        logger.info(
            "--resume_from_checkpoint %s: this command has begun there already, and come to %s; remove what it has "
            "saved since to begin there again.",
            wanted,
            found[-1].name,
        )
    damaged: list[tuple[Path, UserError]] = []
    for candidate in reversed(found):
        try:
            verify(candidate)
        except UserError as error:
            damaged.append((candidate, error))
            continue
        check_resumable(candidate, deepspeed=deepspeed)
        _set_aside(damaged, instead=candidate)
        return candidate
    if damaged:
        raise UserError(
            f"{folder} has no good checkpoint left: {damaged[0][1]} Put back what it lost, or give another "
            "--output_dir to start anew."
        )
    return None


def _when_begun(chosen: Path, folder: Path) -> float:
    """Returns when the run of an output folder was last made to begin from a checkpoint; infinity if it never was."""
    times = [
        datetime.fromisoformat(event["time"]).timestamp()
        for event in read(folder)
        if event.get("event") == "resumed" and event.get("begun_from") == str(chosen.resolve())
    ]
    return times[-1] if times else math.inf


def _begin_from(chosen: Path, *, deepspeed: bool) -> Path:
    """Returns a checkpoint that was asked for, checked."""
    if not os.path.isdir(chosen):
        raise UserError(f"--resume_from_checkpoint {chosen}: there is no such folder.")
    verify(chosen)
    check_resumable(chosen, deepspeed=deepspeed)
    return chosen


def check_resumable(checkpoint: Path, *, deepspeed: bool) -> None:
    """Checks that a checkpoint holds all the state of a run, and that reading it runs no code.

    Raises:
        UserError: A file is missing, or may hold code; the message names it.
    """
    ranks = written_by(checkpoint)
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
    check_pickles(checkpoint)


def check_start(folder: Path) -> None:
    """Checks the weights that a run starts from against their manifest, if they have one.

    Raises:
        UserError: A file is missing or is not what was written; the message names it.
    """
    if os.path.isfile(folder / MANIFEST_NAME):
        try:
            verify(folder)
        except UserError as error:
            raise UserError(
                f"{error} Take another copy of it, or, if you changed it yourself, remove {MANIFEST_NAME}."
            ) from None


def written_by(checkpoint: Path) -> int:
    """Returns the number of ranks that wrote a checkpoint."""
    return max(len(list(checkpoint.glob("rng_state_*.pth"))), 1)


def _set_aside(damaged: list[tuple[Path, UserError]], *, instead: Path) -> None:
    """Renames damaged checkpoints, so that the run can write their steps anew and nothing of them is lost."""
    for path, error in damaged:
        aside = next(name for n in count(1) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
        path.rename(aside)
        told = f"{error} {path} is now {aside.name}, and left alone; the run continues from {instead}."
        record(path.parent, "checkpoint_damaged", told, checkpoint=aside.name, instead=instead.name)


def is_complete(folder: Path) -> bool:
    """Whether the run of an output folder has come to its end."""
    return (folder / METRICS_NAME).is_file()


def complete(staging: Path, output: Path, *, ranks: int, keep: int | None) -> None:
    """Seals the checkpoint that all ranks have written to a staging folder, and puts it in its place.

    At every moment there is a good checkpoint, if there was one: nothing is removed before the new one is in its place.

    Args:
        staging: The folder below which it has grown.
        output: The run's output folder.
        ranks: Number of ranks that have written it.
        keep: The oldest checkpoints beyond so many are removed.

    Raises:
        UserError: The disk is full or failed, or does not show the files of all ranks.
    """
    try:
        for grown in checkpoints(staging):
            if (seen := written_by(grown)) != ranks:
                raise UserError(
                    f"Of {ranks} ranks, the files of {seen} are seen in {grown}. Give an --output_dir on a disk that "
                    f"all nodes share; {last_checkpoint(output)}"
                )
            seal(grown)
        _place(staging, output, keep)
    except OSError as error:
        for grown in checkpoints(staging):
            if not (grown / MANIFEST_NAME).exists():  # the disk may be full
                shutil.rmtree(grown, ignore_errors=True)
        with suppress(OSError):
            staging.rmdir()
        raise unsaved(output, error) from error


def _place(staging: Path, output: Path, keep: int | None) -> None:
    """Moves sealed checkpoints into their place, and out of it what they replace and what is beyond `keep`."""
    placed = checkpoints(staging)
    for whole in placed:
        if (before := output / whole.name).exists():  # of the same step, from before a resumption
            before.rename(staging / f"replaced-{whole.name}")
        whole.rename(output / whole.name)
    sync(output)
    remove_surplus(output, keep, spare=len(placed))


def remove_surplus(output: Path, keep: int | None, *, spare: int = 1) -> None:
    """Removes the oldest checkpoints beyond `keep`, by way of the staging folder, and that folder.

    What cannot be removed now, as on NFS while some process has it open, is no reason to stop: `recover` tries again.

    Args:
        output: The run's output folder.
        keep: Number of checkpoints to keep; all if it is None, 0 or negative.
        spare: So many were written last and stay. They may not have the highest numbers: a run can continue from a
            checkpoint that is not its newest.
    """
    staging = output / STAGING
    staging.mkdir(exist_ok=True)
    if keep and keep > 0:
        by_age = sorted(checkpoints(output), key=_completed)
        for surplus in by_age[: -max(keep, spare)]:
            surplus.rename(Path(tempfile.mkdtemp(dir=staging)) / surplus.name)
    shutil.rmtree(staging, ignore_errors=True)


def _completed(checkpoint: Path) -> float:
    """Returns when a checkpoint was completed; 0 if it was not."""
    manifest = checkpoint / MANIFEST_NAME
    return manifest.stat().st_mtime if manifest.exists() else 0


def unsaved(output: Path, error: BaseException) -> UserError:
    """Returns the error of a checkpoint that could not be written."""
    return UserError(
        f"A checkpoint cannot be written to {output}: {error}. Make room on the disk, or mend it, and the same command "
        f"continues; {last_checkpoint(output)}"
    )


def last_checkpoint(output: str | Path) -> str:
    """Tells what a run that fails can continue from."""
    found = checkpoints(Path(output))
    return f"the last checkpoint is {found[-1]}." if found else "there is no checkpoint yet."


def wait_for_completion(output: Path, seconds: float) -> None:
    """Waits until the checkpoint that another process may be completing is in its place, for so long at most."""
    end = time.monotonic() + seconds
    while checkpoints(output / STAGING) and time.monotonic() < end:
        time.sleep(0.05)


def recover(folder: Path) -> None:
    """Brings in order what a run that was killed while saving left behind.

    A checkpoint that was sealed already, and only not yet in its place, is put there; what is not whole is removed.
    """
    staging = folder / STAGING
    for grown in checkpoints(staging):
        try:
            verify(grown)
        except UserError as error:
            told = f"Removing a checkpoint that was not completed: {error}"
            record(folder, "checkpoint_incomplete", told, checkpoint=grown.name)
            shutil.rmtree(grown)
    if staging.exists():
        _place(staging, folder, keep=None)
    for leftover in (folder / DRY_SAVE, folder / REPARTITIONED, folder / PROGRESS, *folder.glob(".saving.*")):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.glob(".*.json.*"):
        leftover.unlink()
