"""Trains with a gradient that is not finite in the first step, and tells whether any weight changed."""

import math
import os
import sys
from typing import Any

from llava_sp.train import assembly
from llava_sp.train.run import train
from llava_sp.utils.errors import UserError

load_model = assembly.load_model
trained: dict[str, Any] = {}


def load_with_hook(*arguments: Any) -> Any:
    """Loads the model and makes the gradient of its first trained parameter infinite."""
    model, processor = load_model(*arguments)
    trained.update({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    next(iter(trained.values())).register_hook(lambda gradient: gradient * math.inf)
    return model, processor


def main() -> None:
    """Runs the training on one rank; its arguments are the training's."""
    assembly.load_model = load_with_hook
    before: dict[str, Any] = {}
    callback = sys.modules["llava_sp.train.callbacks"].RunCallback
    begin = callback.on_train_begin

    def remember(self: Any, *arguments: Any, **kwargs: Any) -> None:
        before.update({name: parameter.detach().clone() for name, parameter in trained.items()})
        begin(self, *arguments, **kwargs)

    callback.on_train_begin = remember
    try:
        train(sys.argv[1:], ranks=1)
    except UserError as error:
        sys.stdout.write(f"{error}\n")
    unchanged = bool(before) and all(tensor.equal(trained[name]) for name, tensor in before.items())
    sys.stdout.write(f"weights unchanged: {unchanged}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
