"""A manifest makes a folder of files provably whole: their sizes and hashes, written last, when all is on the disk."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, resolve_inside, sha256_file, write_json

MANIFEST_NAME = "manifest.json"

_WRITES = 8
"""Files that the disk is asked to write at a time."""


def seal(folder: Path) -> None:
    """Writes a folder's manifest once all its files are on the disk, not only in memory."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    # The disk writes while the processor hashes.
    with ThreadPoolExecutor(_WRITES) as writing:
        written = writing.map(sync, files)
        hashes = hash_files(files)
        list(written)
    for path in {file.parent for file in files} | {folder}:
        sync(path)
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes, strict=True)
    }
    write_json(folder / MANIFEST_NAME, entries)
    sync(folder)


def verify(folder: Path) -> None:
    """Checks that a folder holds what was sealed, byte for byte; files that came later are left alone.

    Raises:
        UserError: The manifest or a file is missing, or is not what was written; the message names it.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST_NAME}, which is written last; it was not completed.")
    entries = read_json(path)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"{path} is not a manifest.")
    files = {name: resolve_inside(folder, name) for name in entries}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise UserError(f"{folder / missing[0]} is missing; {MANIFEST_NAME} lists it.")
    try:
        for name, entry in entries.items():
            if (size := files[name].stat().st_size) != entry.get("bytes"):
                raise UserError(f"{files[name]} has {size} bytes; {MANIFEST_NAME} says {entry.get('bytes')}.")
        hashes = hash_files(list(files.values()))
    except OSError as error:  # a sector that cannot be read, most likely
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}.") from None
    for name, digest in zip(entries, hashes, strict=True):
        if digest != entries[name].get("sha256"):
            raise UserError(f"{files[name]} is not what was written: {MANIFEST_NAME} has another SHA-256 for it.")


def hash_files(files: Iterable[Path]) -> list[str]:
    """Returns the SHA-256 of each file; hashing frees the interpreter, and several are hashed at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(sha256_file, files))


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
