"""LLaVA's data files, read record by record through a small index, so that no process holds the file in memory.

The index is built once for a file, in one streaming pass: where each record lies, and what length grouping needs. It is
memory-mapped (17 bytes a record), and a record is read from the data file itself when it is asked for.
"""

import fcntl
import glob
import hashlib
import json
import os
import re
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from llava_sp.data.json_stream import scan_records
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import atomic_path

INDEX_FORMAT = 2
"""Counts up when the layout of the index changes, so that an older one is not read."""

ENTRY = np.dtype([("start", "<u8"), ("size", "<u4"), ("words", "<u4"), ("has_image", "?")])
"""One record in the index: its first byte, its bytes, its whitespace-separated words in all turns, its modality.

A last entry, of no record, starts at the checksum of the others.
"""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Record(NamedTuple):
    """One sample of LLaVA's format.

    Attributes:
        id: The record's own id, or its position if it has none.
        image: Path of its image below the image folder; None for text alone.
        conversations: Its turns, `{"from": ..., "value": ...}`.
    """

    id: str
    image: str | None
    conversations: list[dict[str, str]]


class Records:
    """The records of a data file, by position; the same few megabytes of memory for a file of any size.

    Args:
        path: The data file.
        index: Its index, see `open_records`.

    Attributes:
        path: The data file.

    Raises:
        UserError: The index is not that of the file as it is now.
    """

    def __init__(self, path: Path, index: Path) -> None:
        self.path = path
        self._index = index
        self._file = path.open("rb")
        self._check_unchanged()
        entries = _load(index)
        if entries is None:
            raise UserError(f"The index {index} of {path} is damaged or gone; remove it, and start again.")
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, position: int) -> Record:
        entry = self._entries[position]
        self._check_unchanged()
        # pread has no position of its own: worker processes that inherit the open file do not disturb each other.
        content = os.pread(self._file.fileno(), int(entry["size"]), int(entry["start"]))
        position %= len(self)
        try:
            value = json.loads(content)
        except RecursionError:  # there may be less room for it than when the index was built
            raise UserError(f"Record {position + 1} of {self.path} is nested too deeply.") from None
        except ValueError:
            mend = f"remove {self._index}, and it is built anew"
            raise UserError(f"Record {position + 1} of {self.path} is not where its index says; {mend}.") from None
        return _parse(value, position, self.path)

    def __reduce__(self) -> tuple[type, tuple[Path, Path]]:
        return type(self), (self.path, self._index)

    def _check_unchanged(self) -> None:
        if not self._index.name.endswith(_ending(os.fstat(self._file.fileno()))):
            raise UserError(f"The data file {self.path} was changed while it was in use; start again.")

    @property
    def modality_lengths(self) -> np.ndarray:
        """LLaVA's lengths for grouping, in words: positive with an image, negative without, never 0; [records]."""
        words = np.maximum(self._entries["words"].astype(np.int64), 1)
        return np.where(self._entries["has_image"], words, -words)


def open_records(path: str | Path, cache_dir: str | Path | None = None) -> Records:
    """Opens a data file in LLaVA's format; builds its index if there is none that fits its size and date.

    Args:
        path: A JSON list of records, or JSON lines.
        cache_dir: Where the index goes; by default beside the data, or in the user's cache if that cannot be written.

    Raises:
        UserError: The file is missing, empty, malformed or truncated; the message gives the record and its line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The data file {path} does not exist.")
    path = path.resolve()
    folder = Path(cache_dir) if cache_dir else path.parent if os.access(path.parent, os.W_OK) else _user_cache(path)
    index = folder / f".{path.name}{_ending(path.stat())}"
    if _load(index) is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if _load(index) is None:  # another process may have built it while this one waited
                _build(path, index)
                for other in set(folder.glob(f".{glob.escape(path.name)}.*.index.npy")) - {index}:
                    if other.name.count(".") == index.name.count("."):  # else it is that of NAME.SOMETHING
                        other.unlink(missing_ok=True)
    return Records(path, index)


def _ending(state: os.stat_result) -> str:
    """Returns how the name of a file's index ends, which tells another state of the file."""
    return f".{state.st_size:x}-{state.st_mtime_ns:x}-{INDEX_FORMAT}.index.npy"


def _load(index: Path) -> np.ndarray | None:
    """Maps an index into memory; None if there is none, or a damaged one."""
    try:
        entries = np.lib.format.open_memmap(index, mode="r")
        whole = entries.dtype == ENTRY and len(entries) > 1 and entries[-1]["start"] == zlib.crc32(entries[:-1].data)
    except Exception:  # numpy raises anything on a damaged header
        return None
    return entries[:-1] if whole else None


def _user_cache(path: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "llava_sp" / hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process at a time build the index of a file.

    Where the file system has no locks, several build the same index; each is renamed into place whole.
    """
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, index: Path) -> None:
    """Writes the index of a data file, in memory of a few bytes a record."""
    starts, sizes, words, images = array("Q"), array("Q"), array("Q"), array("B")
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"Indexing {path.name}", leave=False) as bar:
        for start, size, content in scan_records(path):
            record = _parse(content, len(starts), path)
            starts.append(start)
            sizes.append(size)
            words.append(sum(len(turn["value"].split()) for turn in record.conversations))
            images.append(record.image is not None)
            bar.update(start + size - bar.n)
    if not starts:
        raise UserError(f"The data file {path} holds no records.")
    entries = np.zeros(len(starts) + 1, ENTRY)
    for field, column in zip(("start", "size", "words", "has_image"), (starts, sizes, words, images), strict=True):
        entries[field][:-1] = column
    entries[-1]["start"] = zlib.crc32(entries[:-1].data)
    with atomic_path(index) as temporary, temporary.open("wb") as file:
        np.save(file, entries)


def _parse(content: Any, position: int, path: Path) -> Record:
    """Checks that a JSON value has the form of a record.

    Raises:
        UserError: It has not; the message names the record.
    """
    if not isinstance(content, dict):
        raise UserError(f"Record {position + 1} of {path} is not a JSON object.")
    own, image, turns = (content.get(name) for name in ("id", "image", "conversations"))
    if isinstance(own, list | dict):
        raise UserError(f"Record {position + 1} of {path}: 'id' must be a text or a number.")
    identity = str(position if own is None else own)
    where = f"Record {position + 1} of {path} (id {identity!r})"
    if image is not None and not isinstance(image, str):
        raise UserError(f"{where}: 'image' must be one path, not {type(image).__name__}.")
    if not isinstance(turns, list):
        raise UserError(f"{where} has no list 'conversations'.")
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise UserError(f"{where}: each turn in 'conversations' must have the texts 'from' and 'value'.")
    if any(_HALF_CHARACTER.search(text) for text in (identity, image or "", *(turn["value"] for turn in turns))):
        raise UserError(f"{where} holds half a character (a lone surrogate such as \\ud83d), which no text can.")
    return Record(identity, image, turns)
