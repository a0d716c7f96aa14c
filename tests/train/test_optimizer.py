"""Every trainable parameter is in one group, with its owner's learning rate."""

from pathlib import Path

import pytest

from llava_sp.train.optimizer import parameter_groups
from tests.train.tools import build_model

Parts = tuple[Path, Path]


@pytest.mark.parametrize(
    ("stage", "owners"),
    [
        ({"tune_mm_mlp_adapter": True}, {"projector"}),
        ({"lora_enable": True, "lora_r": 2}, {"projector", "lora"}),
        ({}, {"projector", "llm"}),
    ],
)
def test_groups_hold_every_trainable_parameter_once(tiny_parts: Parts, stage: dict, owners: set[str]) -> None:
    model, _ = build_model(tiny_parts, **stage)
    groups = parameter_groups(model, learning_rate=1.0, projector_learning_rate=0.5, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert {group["name"] for group in groups} == owners
    assert all(group["params"] for group in groups)


def test_rates_and_decay(tiny_parts: Parts) -> None:
    model, _ = build_model(tiny_parts)
    groups = parameter_groups(model, learning_rate=1.0, projector_learning_rate=0.5, weight_decay=0.1)
    assert {group["name"]: group["lr"] for group in groups} == {"llm": 1.0, "projector": 0.5}
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_one_rate_for_all_where_the_projector_has_none(tiny_parts: Parts) -> None:
    model, _ = build_model(tiny_parts)
    groups = parameter_groups(model, learning_rate=1.0, projector_learning_rate=None, weight_decay=0.0)
    assert {group["lr"] for group in groups} == {1.0}
