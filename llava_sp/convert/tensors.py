"""Tensors that are read or computed only when they are written: what every conversion is made of.

A conversion is a mapping from names to `LazyTensor`s. Shapes and types are known at once, so that everything can be
checked before a byte is written; the values pass through memory one tensor at a time.

This is also the one place that reads weights from pickles, restricted to plain tensors.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from llava_sp.model.parts import explained, reason
from llava_sp.model.trust import shard_names
from llava_sp.utils.errors import UserError

FULL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
EXTRA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
PROJECTOR_FILES = ("model.bin", "mm_projector.safetensors", "mm_projector.bin")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types that weights have here, by their names in safetensors files."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, or computed, each time it is asked for.

    Args:
        origin: Where it comes from, for messages: a name in a file.
        shape: Its shape.
        dtype: Its type.
        read: Returns its values.
    """

    origin: str
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor, origin: str) -> "LazyTensor":
        """Wraps a tensor that is in memory."""
        return cls(origin, tensor.shape, tensor.dtype, lambda: tensor)

    def then(self, function: Callable[..., torch.Tensor], *others: "LazyTensor") -> "LazyTensor":
        """Returns `function(self, *others)`, computed when it is read; its shape follows from a run without values."""
        sources = (self, *others)
        with torch.no_grad():
            like = function(*(torch.empty(source.shape, dtype=source.dtype, device="meta") for source in sources))

        def compute() -> torch.Tensor:
            with torch.no_grad():
                return function(*(source.read() for source in sources))

        return LazyTensor(self.origin, like.shape, like.dtype, compute)


Tensors = dict[str, LazyTensor]


def find_file(home: str, name: str) -> Path | None:
    """Returns the path of a file of a folder or Hub repository; None where it has no such file.

    Raises:
        UserError: There is no such folder or repository.
    """
    with explained("a checkpoint", home):
        found = cached_file(home, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def find_weights(home: str, names: tuple[str, ...]) -> list[Path]:
    """Returns the files of the first of `names` that is there, all its shards if it has an index; else nothing.

    Raises:
        UserError: A shard that the index names is missing, or does not lie beside it.
    """
    for name in names:
        if index := find_file(home, f"{name}.index.json"):
            return [_find_shard(home, index, shard) for shard in shard_names(index)]
        if file := find_file(home, name):
            return [file]
    return []


def read_tensors(files: list[Path]) -> Tensors:
    """Opens weight files, without running any code that they may hold and without reading the values.

    Raises:
        UserError: A file is damaged, or no dictionary of tensors.
    """
    tensors: Tensors = {}
    for file in files:
        tensors.update(_open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file))
    return tensors


def _find_shard(home: str, index: Path, shard: str) -> Path:
    file = find_file(home, shard)
    if file is None:
        raise UserError(f"{index.parent / shard} is missing, though {index.name} names it. Was the download cut short?")
    return file


def _open_safetensors(file: Path) -> Tensors:
    # Opened anew for each tensor: pages of a file that stays mapped would count as this process's memory.
    def read(name: str) -> torch.Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {}
            for name in opened.keys():
                part = opened.get_slice(name)
                shape, dtype = torch.Size(part.get_shape()), DTYPES[part.get_dtype()]
                tensors[name] = LazyTensor(name, shape, dtype, partial(read, name))
            return tensors
    except (SafetensorError, KeyError) as error:
        raise _damaged(file, error) from error


def _open_pickle(file: Path) -> Tensors:
    # Files older than torch's zip format cannot be mapped into memory; they are kept in it.
    mapped = zipfile.is_zipfile(file)
    state = _unpickle(file, mapped)

    def read(name: str) -> torch.Tensor:
        return _unpickle(file, mapped)[name] if mapped else state[name]

    return {name: LazyTensor(name, value.shape, value.dtype, partial(read, name)) for name, value in state.items()}


def _unpickle(file: Path, mapped: bool) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # on what is no pickle of tensors, torch raises anything
        raise _damaged(file, error) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"{file} holds no dictionary of tensors.")
    return found


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged, or holds something else than tensors; none of it was run. ({reason(error)})")
