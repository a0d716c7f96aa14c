"""What a checkpoint's card tells of the run that made it."""

from dataclasses import MISSING, fields
from typing import Any

from llava_sp.train.command_line import RunArguments
from llava_sp.utils.git import git_state

PATHS_OF_THIS_MACHINE = ("output_dir", "local_rank", "deepspeed")

MIRRORS = ("activation_checkpointing", "activation_checkpointing_kwargs")
"""Other names of `gradient_checkpointing`, which newer versions of transformers fill in."""


def describe(run: RunArguments) -> dict[str, Any]:
    """Returns the arguments that were chosen, the batch, and the state of the code."""
    return {
        "arguments": {name: value for name, value in chosen_arguments(run) if name not in PATHS_OF_THIS_MACHINE},
        "global_batch_size": run.batch_plan.global_batch,
        "ranks": run.batch_plan.ranks,
        "git": git_state(),
    }


def chosen_arguments(run: RunArguments) -> list[tuple[str, Any]]:
    """Returns every argument that is not at its default, except secrets, as plain values."""
    chosen = []
    for source in (run.model, run.data, run.training):
        for item in fields(source):
            if not item.init or item.name.endswith("_token") or item.name in MIRRORS:
                continue
            value = getattr(source, item.name)
            value = getattr(value, "value", value)  # of an enumeration
            default = item.default if item.default is not MISSING else None
            plain = isinstance(value, (str, int, float, bool, list, dict))
            if plain and value != default and value not in ([], {}):
                chosen.append((item.name, value))
    return chosen
