"""What a checkpoint's card tells of the run that made it."""

import shutil
import subprocess
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llava_sp.train.command_line import RunArguments

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


def git_state() -> str | None:
    """Returns the commit of this source tree, with `-dirty` where files differ from it; None outside of one."""
    git = shutil.which("git")
    here = Path(__file__).parents[2]
    if git is None or not (here / ".git").exists():
        return None
    command = [git, "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
