"""Pickles of a checkpoint, read by a reader that runs no code.

DeepSpeed reads its part of a checkpoint with all that Python's pickle can do, and that is anything at all. So before a
run continues, PyTorch's restricted reader goes through every pickle: tensors, plain values, and a few harmless classes.
"""

import pkgutil
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers.trainer_pt_utils import safe_globals as numpy_globals

from llava_sp.utils.errors import UserError

HARMLESS = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes that DeepSpeed writes into its checkpoints; they hold a few numbers each."""

PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
"""Endings of the files that some library unpickles."""


def check_pickles(checkpoint: Path) -> None:
    """Checks that unpickling whatever lies in a checkpoint runs no code; reads names and shapes, not the tensors.

    Raises:
        UserError: A file may hold code, is no file of `torch.save`, or leads out of the checkpoint; it is named.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise UserError(
                f"{path} is a link to another folder; a checkpoint holds its files itself. Copy them there."
            )
        # `.metadata` is a pickle too, of torch.distributed.checkpoint.
        if path.is_file() and (path.suffix.lower() in PICKLES or path.name == ".metadata"):
            load(path)
    folders = {path.name for path in checkpoint.iterdir() if path.is_dir()}
    for pointer in filter(Path.is_file, (checkpoint / "latest", checkpoint / "latest_universal")):
        # DeepSpeed reads from there, wherever it is.
        if (name := pointer.read_text(errors="replace").strip()) not in folders:
            raise UserError(f"{pointer} names {name!r}, which is no folder beside it. Give another checkpoint.")


def load(file: Path) -> Any:
    """Reads a file of `torch.save` without running code.

    Args:
        file: It holds tensors, plain values, random states of NumPy, and classes of `HARMLESS`.

    Returns:
        What was saved. Tensors are on the CPU, and mapped: their bytes are read when they are used.

    Raises:
        UserError: It holds anything else, or is not in PyTorch's format (a zip archive, since PyTorch 1.6).
    """
    with numpy_globals():
        try:
            named = set(get_unsafe_globals_in_checkpoint(file))
            if not named <= HARMLESS:
                raise ValueError(f"it names {', '.join(sorted(named - HARMLESS))}")
            with safe_globals([pkgutil.resolve_name(name) for name in named]):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{file} is not read, because it may hold code or is damaged: {reason}. Give a checkpoint that this "
                "project has written."
            ) from None
