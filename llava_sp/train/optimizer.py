"""Parameter groups: two learning rates, weight decay for matrices only."""

from typing import Any

from torch import nn

from llava_sp.model.trainable import trainable_parameter_groups

ORDER = ("llm", "lora", "vision_tower", "projector")
"""The first group's learning rate is the one that is logged as `learning_rate`."""


def parameter_groups(
    model: nn.Module, *, learning_rate: float, projector_learning_rate: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Makes the optimizer's groups from module ownership.

    Args:
        model: The model, its trainable parameters chosen.
        learning_rate: Rate of the LLM or its LoRA.
        projector_learning_rate: Rate of the patch projector and the spatial modules; None for the same rate.
        weight_decay: Decay of matrices and kernels. Vectors (biases, norms) have none, as is usual.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, and a `name`; none is empty. Together they hold every trainable
        parameter once.
    """
    owners = trainable_parameter_groups(model)
    groups = []
    for owner in sorted(owners, key=ORDER.index):
        rate = learning_rate
        if owner == "projector" and projector_learning_rate is not None:
            rate = projector_learning_rate
        decayed = [parameter for _, parameter in owners[owner] if parameter.ndim >= 2]
        others = [parameter for _, parameter in owners[owner] if parameter.ndim < 2]
        for parameters, decay in ((decayed, weight_decay), (others, 0.0)):
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": owner})
    return groups
