"""Writing weights as a stream: safetensors in shards, one tensor in memory at a time, all of it or nothing."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from tqdm import tqdm

from llava_sp.convert.tensors import DTYPES, LazyTensor, Tensors
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import new_folder, write_json

SHARD_BYTES = 5 * 10**9
GIB = 2**30
SMALL_FILES_BYTES = 64 * 2**20  # tokenizer, configuration, and a margin

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system answers where a file cannot grow: disk, quota, or the file system's largest file."""


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends well, and is removed otherwise.

    Raises:
        UserError: `path` is in use, or the disk is full.
    """
    try:
        with new_folder(path) as folder:
            yield folder
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise UserError(f"The output folder {path} is in use: something was written there meanwhile.") from error
        if error.errno not in FULL_DISK:
            raise
        raise UserError(f"The disk of {path} is full ({error.strerror}). Nothing was left there; make room.") from error


def write_weights(folder: Path, tensors: Tensors, dtype: torch.dtype, *, name: str = "model") -> None:
    """Writes tensors as safetensors, in shards with an index where they are many.

    Args:
        folder: Where to write.
        tensors: What to write, by name.
        dtype: Type that floating-point tensors are written in.
        name: Beginning of the files' names.

    Raises:
        UserError: The disk has no room for them; nothing is written then.
    """
    tensors = {key: tensor.then(lambda value: value.to(dtype)) for key, tensor in tensors.items()}
    shards = _split(tensors)
    total = sum(_nbytes(tensor) for tensor in tensors.values())
    _check_room(folder, total)
    files = [f"{name}.safetensors"]
    if len(shards) > 1:
        files = [f"{name}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing weights") as progress:
        for file, shard in zip(files, shards, strict=True):
            with (folder / file).open("wb") as stream:
                _write_shard(stream, shard, progress)
    if len(shards) > 1:
        weight_map = {key: file for file, shard in zip(files, shards, strict=True) for key in shard}
        write_json(
            folder / f"{name}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _nbytes(tensor: LazyTensor) -> int:
    return tensor.shape.numel() * tensor.dtype.itemsize


def _split(tensors: Tensors) -> list[Tensors]:
    shards: list[Tensors] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _nbytes(tensor) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _nbytes(tensor)
    return shards


def _check_room(folder: Path, size: int) -> None:
    needed, free = size + SMALL_FILES_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The disk of {folder.parent} has {free / GIB:.2f} GiB free, and the result needs {needed / GIB:.2f} GiB. "
            "Make room, or choose another place with --output."
        )


def _write_shard(stream: BinaryIO, tensors: Tensors, progress: tqdm) -> None:
    """Writes one file: the length of the header, the header, then the values in its order without gaps."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _nbytes(tensor)
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # values lie on multiples of 8
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        values = tensor.read().contiguous()
        stream.write(values.reshape(-1).view(torch.uint8).numpy().data)
        progress.update(values.nbytes)
    stream.flush()
    os.fsync(stream.fileno())
