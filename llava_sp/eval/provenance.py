"""What scores were made with: the checkpoint's files, the data's files, the versions of the code."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

BLOCKS = 16
BLOCK_BYTES = 2**16


def checkpoint_digest(path: str) -> str | None:
    """Tells a checkpoint's files from other files of the same names, without reading gigabytes of weights.

    Names, sizes and some blocks of each file's content are hashed, so that a copy of the folder has the same digest.

    Args:
        path: A folder, or a name on the Hugging Face Hub.

    Returns:
        The digest in hexadecimal; `None` for what is neither a folder nor in the Hub's cache.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(path, "config.json")
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    total = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        total.update(_blocks(file))
    return total.hexdigest()


def _blocks(path: Path) -> bytes:
    """Returns blocks of a file's content, spread evenly from its beginning to its end; all of it if it is small."""
    last = max(path.stat().st_size - BLOCK_BYTES, 0)
    found = []
    with path.open("rb") as file:
        for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
            file.seek(start)
            found.append(file.read(BLOCK_BYTES))
    return b"".join(found)
