"""Reading the weight files of others: safetensors and, in this one place, pickles restricted to plain tensors."""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json

FULL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
EXTRA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
PROJECTOR_FILES = ("model.bin", "mm_projector.safetensors", "mm_projector.bin")


def find_weights(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Returns the files of the first of `names` that is there, all its shards if it has an index; else nothing."""
    for name in names:
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
        if (folder / name).exists():
            return [folder / name]
    return []


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Reads state dictionaries into one, without running any code that a file may hold.

    Raises:
        UserError: A file is missing, damaged, or no dictionary of tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(_read(file))
    return tensors


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.exists():
        raise UserError(f"{file} is missing, though the index beside it names it. Was the download interrupted?")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Files older than torch's zip format cannot be mapped into memory.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        message = f"{file} is damaged, or holds something else than tensors; none of it was run. ({reason})"
        raise UserError(message) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"{file} holds no dictionary of tensors.")
    return found
