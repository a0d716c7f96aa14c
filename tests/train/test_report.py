"""The estimate of memory, by where it lies."""

from pathlib import Path

import pytest

from llava_sp.train import assembly
from llava_sp.train.report import format_memory, memory_estimate
from tests.train.test_assembly import parse

CONFIGS = Path(__file__).parents[2] / "configs"


def test_what_zero_offloads_is_memory_of_the_cpu(tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    llm, tower = map(str, tiny_parts)
    run = parse(tmp_path, "--model_name_or_path", llm, "--vision_tower", tower, "--sfe_channels", "8")
    model, _ = assembly.plan_model(run)
    run.training.deepspeed = str(CONFIGS / "zero3.json")
    whole = memory_estimate(model, run)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert whole["optimizer states"] == 12 * trained  # two moments, and masters also of weights in fp32
    run.training.deepspeed = str(CONFIGS / "zero3_offload.json")
    moved = memory_estimate(model, run)
    states = whole["weights"] + whole["gradients"] + whole["optimizer states"]
    assert moved == {"activations": whole["activations"], "CPU memory": pytest.approx(states)}
    *_, total, cpu = format_memory(moved, run).splitlines()
    assert float(total.split()[1]) == pytest.approx(whole["activations"] / 2**30, abs=0.01)
    assert "CPU memory" in cpu
