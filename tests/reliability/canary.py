"""A canary: a file that is there once code from a checkpoint has run, and the folders that try to make it so."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava_sp.utils.manifest import MANIFEST_NAME


class Canary:
    """Unpickling this, or importing what it plants, would create a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return (Path.touch, (self.path,))

    @property
    def sang(self) -> bool:
        """Whether code has run."""
        return self.path.exists()

    def plant(self, folder: Path, *names: str) -> None:
        """Writes modules that a configuration in `folder` may name, with whatever it may look for in them."""
        for name in names or ("evil.py", "custom_generate/generate.py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(
                f"from pathlib import Path\nPath({str(self.path)!r}).touch()\n"
                "from transformers import PreTrainedConfig\n"
                "class Evil(PreTrainedConfig):\n    model_type = 'evil'\ndef generate(*_, **__): pass\n"
            )


def copied(folder: Path, into: Path) -> Path:
    """Copies a folder to `into`, for a test to change; without its manifest, which would tell of that."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    return into


def edit(file: Path, part: str | None = None, **fields: Any) -> None:
    """Sets fields of a JSON file, or of an object inside it; the file is made if need be."""
    content = json.loads(file.read_text()) if file.exists() else {}
    (content if part is None else content.setdefault(part, {})).update(fields)
    file.write_text(json.dumps(content))


def as_pickle(canary: Canary, file: Path) -> None:
    """Python's own format."""
    file.write_bytes(pickle.dumps({"weight": canary}))


def as_checkpoint(canary: Canary, file: Path) -> None:
    """PyTorch's format, a zip archive."""
    torch.save({"weight": canary}, file)


def as_old_checkpoint(canary: Canary, file: Path) -> None:
    """PyTorch's format of before 1.6."""
    torch.save({"weight": canary}, file, _use_new_zipfile_serialization=False)


def as_archive(canary: Canary, file: Path) -> None:
    """PyTorch's first format, which is told by its being a tar archive."""
    inside = file.with_name("pickle")
    as_pickle(canary, inside)
    with tarfile.open(file, "w") as archive:
        archive.add(inside)
    inside.unlink()


def as_script(canary: Canary, file: Path) -> None:
    """TorchScript, code by its nature."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)


PICKLES = (as_pickle, as_checkpoint, as_old_checkpoint, as_archive, as_script)
