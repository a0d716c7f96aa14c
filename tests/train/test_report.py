"""The estimate of memory, by where it lies, and what it advises where memory was too little."""

from pathlib import Path

import pytest
import torch

from llava_sp.train import assembly
from llava_sp.train.batch_plan import BatchPlan
from llava_sp.train.command_line import RunArguments
from llava_sp.train.report import (
    GIB,
    format_memory,
    lighter_runs,
    memory_advice,
    memory_estimate,
    rank_memory,
    short_of,
)
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


NO_ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.fixture
def run(tiny_parts: tuple[Path, Path], tmp_path: Path) -> RunArguments:
    """A run of stage 1 with 8 samples at a time, whose activations are most of what it needs."""
    llm, tower = map(str, tiny_parts)
    batch = ["--per_device_train_batch_size", "8", "--global_batch_size", "16", "--model_max_length", "64"]
    stage = ["--tune_mm_mlp_adapter", "True", "--sfe_channels", "8"]
    return parse(tmp_path, "--model_name_or_path", llm, "--vision_tower", tower, *batch, *stage)


def need(run: RunArguments) -> float:
    return rank_memory(assembly.plan_model(run)[0], run)


def figure(size: float) -> str:
    return f"{size / GIB:.3g}"


def test_the_first_batch_that_fits_is_advised_with_its_figures(run: RunArguments) -> None:
    (batches, checkpointing, bits, _) = lighter_runs(run)
    assert [lighter.batch_plan for _, lighter in batches] == [
        BatchPlan(4, 4, 1),
        BatchPlan(2, 8, 1),
        BatchPlan(1, 16, 1),
    ]
    flags, fits = batches[1]
    assert flags == "--per_device_train_batch_size 2 --gradient_accumulation_steps 8"
    available = need(fits) / 0.9 + 1
    advice = memory_advice(run, NO_ROOM, available=available)
    assert advice is not None
    assert f"needs about {figure(need(run))} GiB" in advice and f"can have {figure(available)}." in advice
    assert f"Give {flags} ({figure(need(fits))} GiB)" in advice
    enough = {flags: need(lighter) <= 0.9 * available for flags, lighter in (checkpointing[0], bits[0])}
    assert [flags for flags in enough if flags in advice] == [flags for flags, fits in enough.items() if fits]
    assert run.batch_plan == BatchPlan(8, 2, 1) and not run.training.gradient_checkpointing  # it is as it was


def test_an_estimate_that_was_too_low_is_taken_for_that(run: RunArguments) -> None:
    advice = memory_advice(run, NO_ROOM, available=100 * need(run))
    assert advice is not None and "Give --per_device_train_batch_size 4 --gradient_accumulation_steps 4 (" in advice


def test_what_fits_only_together_is_advised_together(run: RunArguments) -> None:
    *single, last = lighter_runs(run)
    together, fits = last[0]
    assert together == (
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --gradient_checkpointing true --bits 4"
    )
    assert need(fits) < min(need(lighter) for knob in single for _, lighter in knob)
    advice = memory_advice(run, NO_ROOM, available=need(fits) / 0.9 + 1)
    assert advice is not None and f"Give {together} ({figure(need(fits))} GiB)." in advice


def test_where_nothing_fits_that_is_said(run: RunArguments) -> None:
    advice = memory_advice(run, NO_ROOM, available=1000)
    assert advice is not None and "It takes more memory, more ranks, or a lower --model_max_length." in advice


def test_several_ranks_can_share_the_weights_of_an_llm_that_learns(run: RunArguments) -> None:
    run.model.tune_mm_mlp_adapter = False
    run.training.deepspeed = str(CONFIGS / "zero2.json")
    run.batch_plan = BatchPlan(1, 1, 8)
    knobs = [flags for knob in lighter_runs(run) for flags, _ in knob]
    zero3 = f"--deepspeed {CONFIGS / 'zero3.json'}"
    assert knobs == ["--gradient_checkpointing true", zero3, f"--gradient_checkpointing true {zero3}"]


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (NO_ROOM, "GPU"),
        (RuntimeError("CUDA error: out of memory"), "GPU"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you"),
            "machine",
        ),
        (MemoryError(), "machine"),
        (OSError(12, "Cannot allocate memory"), "machine"),
        (RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. "), "machine"),
        (RuntimeError("The size of tensor a must match"), None),
        (KeyError("memory"), None),
    ],
)
def test_whose_memory_is_used_up_is_told_apart(run: RunArguments, error: Exception, place: str | None) -> None:
    assert short_of(error) == place
    advice = memory_advice(run, error, available=1.0)
    assert advice is None if place is None else str(advice).startswith(f"The {place} is out of memory")


def test_a_machine_without_memory_is_not_helped_by_what_helps_the_gpu(run: RunArguments) -> None:
    run.training.use_cpu = False
    run.training.dataloader_num_workers = 4
    advice = memory_advice(run, MemoryError())
    assert advice is not None and "--dataloader_num_workers below 4, or a lower --nproc_per_node" in advice
    assert "batch_size" not in advice


def test_on_the_cpu_a_rank_can_have_its_share_of_the_machine(
    run: RunArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**21}.__getitem__)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    advice = memory_advice(run, MemoryError())
    assert advice is not None and "can have 2." in advice
