"""Files that are either whole or absent, and paths that stay inside their root."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from llava_sp.utils.errors import UserError

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]", re.ASCII)
"""How JSON escapes half of a character beyond 16 bits; two of them make a whole one."""


NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""Why nothing can be written to a place, whatever it is; unlike a full disk."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

OWN_FOLDERS = ("checkpoints", "playground", "results")
"""Where commands write unless told otherwise; no owners of repositories on the Hub."""


def is_hub_name(name: str) -> bool:
    """Whether a name that is no local folder can be one on the Hugging Face Hub, and is not just a mistyped path."""
    return bool(_HUB_NAME.fullmatch(name)) and not name.startswith(".") and name.split("/")[0] not in OWN_FOLDERS


@contextmanager
def making(path: str | Path) -> Iterator[None]:
    """Says in one line why a file or folder cannot be made where a user wants it.

    Raises:
        UserError: It cannot be; an OSError of another kind, such as a full disk, stays what it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise UserError(f"Cannot write to {path}: {error.strerror}. Name another place.") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes `path`'s place when the block ends well, else it is removed."""
    target = Path(path)
    with making(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; give the result the permissions any other new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: The file is missing, or is not JSON; the message gives the line.
    """
    with _reading(path):
        text = Path(path).read_text(encoding="utf-8")
    return parse_json(text, str(path))


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object, as settings do.

    Raises:
        UserError: The file is missing, is not JSON, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object of names and values.")
    return value


def parse_json(text: str, where: str) -> Any:
    """Decodes JSON that somebody else wrote.

    Args:
        text: One JSON value.
        where: What errors call it, such as file and line.

    Raises:
        UserError: It is not JSON, or holds half a character, which no text can.
    """
    try:
        value = json.loads(text)
        is_text = not _HALF_CHARACTER.search(text) or _is_text(value)
    except RecursionError:
        raise UserError(f"{where} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        raise UserError(f"{where} is not valid JSON: {error}. Is it cut off?") from None
    if not is_text:
        raise UserError(f"{where} holds half a character (a lone surrogate such as \\ud83d), which no text can.")
    return value


def _is_text(value: Any) -> bool:
    """Tells whether all strings of a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def iter_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yields the values of a file of JSON lines, each with what errors call its place; empty lines are left out.

    Raises:
        UserError: The file is missing, or has a line that is not JSON; the message gives the line.
    """
    with _reading(path), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, parse_json(line.rstrip("\n"), where)


def read_json_lines(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, each an object with at least `keys`.

    Raises:
        UserError: The file is missing, empty, or has a line that is no such object; the message gives the line.
    """
    records = []
    for where, record in iter_json_lines(path):
        if not isinstance(record, dict) or any(key not in record for key in keys):
            raise UserError(f"{where} must be an object with {', '.join(keys)}.")
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty.")
    return records


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes JSON values to `path` atomically, a line each."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Says in one line why a text file cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Says in one line why a file cannot be written.

    Raises:
        UserError: It cannot be.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_inside(root: str | Path, relative: str) -> Path:
    """Joins a path that a data file names to its root folder, and refuses one that leaves it.

    Args:
        root: The folder that the data file's paths are relative to.
        relative: The path as written in the data file.

    Returns:
        The joined path, links resolved. It need not exist.

    Raises:
        UserError: `relative` is absolute, a URL, no possible name, or leads out of `root` by `..` or by a link.
    """
    shown = repr(relative if len(relative) <= 200 else f"{relative[:200]}...")
    absolute = Path(relative).is_absolute() or PureWindowsPath(relative).is_absolute()
    if "\0" in relative or "://" in relative or absolute:
        raise UserError(f"The path {shown} must be relative to {root}: no absolute path, no URL, no NUL byte.")
    base = Path(root).resolve()
    try:
        joined = (base / relative).resolve()
        joined.exists()
    except (RuntimeError, UnicodeError) as error:  # links in a circle, half a letter
        raise UserError(f"The path {shown} cannot be that of a file: {type(error).__name__}.") from None
    except OSError as error:  # other ones, such as a disk that fails, are for whoever opens the file
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"The path {shown} cannot be that of a file: {error.strerror}.") from None
    if not joined.is_relative_to(base):
        raise UserError(f"The path {shown} leaves its folder {root} (by '..' or a link), which is not allowed.")
    return joined


@contextmanager
def staged(path: str | Path, *, last: str) -> Iterator[Path]:
    """Yields a temporary folder inside `path`, made if need be; its files move to `path` when the block ends well.

    Args:
        path: A folder, which may hold other files. Files of the same name are replaced.
        last: Name of the file that moves after all others: where it is, they are.
    """
    target = Path(path)
    with making(target):
        target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=target) as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir(), key=lambda file: file.name == last):
            file.replace(target / file.name)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` when the block ends well, else it is removed.

    Raises:
        UserError: `path` exists and is not an empty folder, or it cannot be made.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"The output folder {target} is not empty. Name a new one; nothing is overwritten.")
    with making(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
