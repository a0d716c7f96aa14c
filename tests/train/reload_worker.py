"""Loads checkpoints in a process of its own and writes what it found: `python -m tests.train.reload_worker FOLDER...`.

Standard output gets JSON: for each folder the trainable tensors by name, each as the hash of its bytes.
"""

import hashlib
import json
import sys

import torch
from torch import nn

from llava_sp.model import loading
from llava_sp.train.arguments import ModelArguments
from llava_sp.train.assembly import choose_trainables


def fingerprints(model: nn.Module) -> dict[str, str]:
    """The trainable tensors of a model, each as the hash of its bytes."""
    return {
        name: hashlib.sha256(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def main() -> None:
    """Reads `{folder: model arguments}` from standard input."""
    found = {}
    for folder, arguments in json.load(sys.stdin).items():
        model, _ = loading.load(folder, merge=False)
        found[folder] = fingerprints(choose_trainables(model, ModelArguments(**arguments)))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
