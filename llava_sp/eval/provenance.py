"""What scores were made with: the checkpoint's files, the data's files, the versions of the code."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

from llava_sp.data.conversation import get_template
from llava_sp.eval.batches import as_turns
from llava_sp.eval.benchmarks.base import Benchmark
from llava_sp.eval.questions import Question
from llava_sp.model.card import package_versions
from llava_sp.model.hub import FILES, commit
from llava_sp.model.loading import read_card
from llava_sp.utils.files import sha256_file
from llava_sp.utils.git import git_state

BLOCKS = 16
BLOCK_BYTES = 2**16


def checkpoint_digest(path: str) -> str | None:
    """Tells a checkpoint's files from other files of the same names, without reading gigabytes of weights.

    Names, sizes and some blocks of each file's content are hashed, so that a copy of the folder has the same digest.
    What else lies there, such as a run's lock and events, does not count.

    Args:
        path: A folder, or a name on the Hugging Face Hub.

    Returns:
        The digest in hexadecimal, of a Hub repository its commit; `None` where nothing of it can be reached.
    """
    folder = Path(path)
    if not folder.is_dir():
        return commit(path)
    total = hashlib.sha256()
    for file in sorted(file for pattern in FILES for file in folder.glob(pattern) if not file.name.startswith(".")):
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        total.update(_blocks(file))
    return total.hexdigest()


def describe(
    benchmark: Benchmark, root: Path, settings: dict[str, Any], question: Question, *, batch_size: int, ranks: int
) -> dict[str, Any]:
    """Returns what a benchmark's answers were made with, as JSON values.

    Args:
        benchmark: The benchmark.
        root: Its folder.
        settings: What decides the answers, see `what_decides_the_answers`.
        question: One of the questions, to show the prompt as the LLM gets it.
        batch_size: Questions per batch.
        ranks: Number of ranks that answered together.
    """
    card = read_card(settings["model_path"])
    template = get_template(settings["conv_mode"] or (card.conversation_template if card else "v1"))
    files = {file.name: benchmark.find(root, file.name) for file in benchmark.files}
    told = None
    if card is not None:
        told = {name: getattr(card, name) for name in ("stage", "parts", "fingerprint", "details")}
    return {
        "settings": settings,
        "data_folder": str(root.resolve()),
        "template": {"name": template.name, "example": template.prompt_text(as_turns(question), as_written=True)},
        "data_sha256": {name: sha256_file(path) for name, path in files.items() if path and path.is_file()},
        "checkpoint": told,
        "batch_size": batch_size,
        "ranks": ranks,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "versions": {"python": platform.python_version(), **package_versions()},
        "git": git_state(),
    }


def _blocks(path: Path) -> bytes:
    """Returns blocks of a file's content, spread evenly from its beginning to its end; all of it if it is small."""
    last = max(path.stat().st_size - BLOCK_BYTES, 0)
    found = []
    with path.open("rb") as file:
        for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
            file.seek(start)
            found.append(file.read(BLOCK_BYTES))
    return b"".join(found)
