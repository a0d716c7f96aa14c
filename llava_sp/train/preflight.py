"""Checks before the first step: does DeepSpeed drive, is there room, and does saving save what is trained."""

import platform
import shutil
from pathlib import Path

from safetensors import safe_open
from torch import nn

from llava_sp.model.loading import checkpoint_kind
from llava_sp.model.trainable import part_modules, trainable_parameter_groups
from llava_sp.train.checkpoint import DRY_SAVE, checkpoints
from llava_sp.train.runtime import agree
from llava_sp.train.saving import SavingTrainer, all_finite
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

OPTIMIZER_BYTES = 12
"""AdamW in fp32, per trained parameter: the master weight and two moments, four bytes each."""


def check_trainables(model: nn.Module) -> None:
    """Asserts what must hold in every run: the tower is frozen, and LoRA sits in the LLM alone."""
    groups = trainable_parameter_groups(model)
    assert "vision_tower" not in groups, "the vision tower must stay frozen"
    in_llm = {id(p) for module in part_modules(model)["llm"] for p in module.parameters()}
    outside = [name for name, p in groups.get("lora", []) if id(p) not in in_llm]
    assert not outside, f"LoRA outside the LLM: {outside[:3]}"


def check_before_first_step(trainer: SavingTrainer) -> None:
    """Runs all checks of a trainer that is ready for its first step; a collective call.

    Raises:
        UserError: DeepSpeed was asked for and does not drive the run, a weight is not finite, or the disk is too full
            for a checkpoint or not shared by all ranks.
    """
    check_trainables(trainer.model)
    all_finite(trainer.model.named_parameters(), "The weights to start from", "A file is damaged; fetch it again.")
    if trainer.args.deepspeed:
        engine = type(trainer.deepspeed).__name__
        if engine != "DeepSpeedEngine":
            raise UserError(
                f"--deepspeed was given, but a {engine} drives the run. Is ACCELERATE_USE_CPU set? Unset it and give "
                "--use_cpu instead."
            )
        trainer.trim_engine_checkpoints()
    output = Path(trainer.args.output_dir)
    if trainer.args.should_save:
        _check_room(trainer, output)
    folder = output / DRY_SAVE
    try:
        trainer.save_model(str(folder), _internal_call=True)  # as for a checkpoint
        if trainer.args.should_save:
            check_saved_names(trainer.model, folder)
        trainer.wait_for_all()
        agree(None if folder.is_dir() else not_shared(output))
    finally:
        if trainer.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
    trainer.wait_for_all()


def not_shared(output: Path) -> UserError:
    """Returns the error of a rank that does not see what the first one has written."""
    return UserError(
        f"What the first rank writes to {output} is not seen on {platform.node()}. Give an --output_dir on a disk "
        "that all nodes share: checkpoints and the ranks' signs of life go there."
    )


def _check_room(trainer: SavingTrainer, output: Path) -> None:
    """The result, and one checkpoint more than are kept, for the new one grows beside them."""
    model = trainer.model
    trained = [p for group in trainable_parameter_groups(model).values() for _, p in group]
    count = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
    saved = model.parameters() if checkpoint_kind(model) == "full" else trained
    weights = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in saved)
    steps = trainer.args.save_strategy != "no"
    kept = (trainer.args.save_total_limit or 1) + 1 if steps else 0
    kept = max(kept - len(checkpoints(output)), 1) if kept else 0  # those that are there are among them
    needed = weights + kept * (2 * weights + OPTIMIZER_BYTES * count)  # DeepSpeed's part repeats the weights
    free = shutil.disk_usage(output).free
    if free < needed:
        raise UserError(
            f"{output} has {free / 2**30:.1f} GiB free, and the run needs about {needed / 2**30:.1f} GiB for its "
            "checkpoints. Free some, or save less (--save_total_limit 1 or --save_strategy no)."
        )


def check_saved_names(model: nn.Module, folder: Path) -> None:
    """Asserts that a checkpoint holds exactly what is trained (a full one: at least that)."""
    saved: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            saved.update(weights.keys())
    trained = {
        name.replace(".modules_to_save.default", "").replace(".default", "")
        for group in trainable_parameter_groups(model).values()
        for name, _ in group
    }
    missing = trained - saved
    assert not missing, f"trained but not saved: {sorted(missing)[:3]}"
    surplus = saved - trained if checkpoint_kind(model) != "full" else set()
    assert not surplus, f"saved but not trained: {sorted(surplus)[:3]}"
