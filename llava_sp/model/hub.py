"""Checkpoints on the Hugging Face Hub: which files of them are read, and in which state."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import CONFIG_NAME, cached_file

from llava_sp.model.parts import explained

WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where a checkpoint's own files are, and not those that it stands on."""

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""The files of a checkpoint that anything is read from."""


def local_folder(name: str | Path, *, subfolder: str = "", **where: Any) -> Path:
    """Returns the folder of a checkpoint on this machine, fetched if it is a name on the Hub.

    Args:
        name: A folder, or a name on the Hub.
        subfolder: The folder in it that holds the checkpoint.
        **where: `revision`, `token` and the like, see `WHERE`.

    Raises:
        UserError: It cannot be fetched.
    """
    if Path(name).is_dir():
        return Path(name, subfolder)
    with explained("the checkpoint", str(name)):
        wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in FILES]
        return Path(snapshot_download(str(name), allow_patterns=wanted, **where), subfolder)


def commit(name: str) -> str | None:
    """Returns which state of a Hub repository is read, `None` where nothing of it can be reached."""
    lenient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    with explained("the checkpoint", name):
        found = cached_file(name, CONFIG_NAME, **lenient)
    return Path(found).parent.name if found else None
