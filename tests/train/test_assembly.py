"""Trained = saved = loaded, in every stage and variant; stage 2 starts from stage 1's weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_sp.model import loading
from llava_sp.model.trainable import plain_model
from llava_sp.model.variants import VARIANTS
from llava_sp.train import assembly
from llava_sp.train.command_line import RunArguments, build_arguments, collect, complete
from llava_sp.train.preflight import check_saved_names, check_trainables
from llava_sp.utils.errors import UserError
from tests.train.reload_worker import fingerprints
from tests.train.tools import build_model

Parts = tuple[Path, Path]

STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"tune_mm_mlp_adapter": True},
    "finetune_lora": {"lora_enable": True, "lora_r": 2},
    "finetune": {},
}


def parse(folder: Path, *flags: str) -> RunArguments:
    given = collect(["--output_dir", str(folder / "out"), "--use_cpu", *flags])
    return build_arguments(given, complete(given, ranks=1))


@pytest.fixture(scope="module")
def stage_one(tiny_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 checkpoint whose projector is no fresh one."""
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    with torch.no_grad():
        for parameter in plain_model(model).model.multi_modal_projector.parameters():
            parameter.add_(1.0)
    folder = tmp_path_factory.mktemp("stage_one")
    loading.save(model, processor, folder, stage="pretrain")
    return folder


def test_what_is_trained_is_what_is_saved_and_loaded(tiny_parts: Parts, tmp_path: Path) -> None:
    """Perturbs every trainable tensor and reloads in a fresh process: names equal, values equal to the bit."""
    expected: dict[str, dict[str, str]] = {}
    jobs: dict[str, dict[str, Any]] = {}
    for variant in sorted(set(VARIANTS) - {"eight_tokens", "twelve_tokens"}):  # the tiny grid is too small for these
        for stage, arguments in STAGES.items():
            if variant not in ("cropping", "pooling", "none") and stage != "pretrain":
                continue  # the spatial part is saved by the same code whatever else is trained
            model, processor = build_model(tiny_parts, variant, **arguments)
            check_trainables(model)
            fresh = fingerprints(model)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter))
            folder = str(tmp_path / f"{variant}-{stage}")
            loading.save(model, processor, folder, stage=stage)
            check_saved_names(model, Path(folder))
            jobs[folder], expected[folder] = arguments, fingerprints(model)
            assert all(fresh[name] != value for name, value in expected[folder].items())
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.reload_worker"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("stage", ["finetune_lora", "finetune", "pretrain"])
def test_a_later_stage_starts_from_stage_ones_weights(stage_one: Path, tmp_path: Path, stage: str) -> None:
    flags = {"finetune_lora": ["--lora_enable", "--lora_r", "2"], "finetune": [], "pretrain": ["--tune_mm_mlp_adapter"]}
    run = parse(tmp_path, "--init_from", str(stage_one), *flags[stage])
    model, _ = assembly.load_model(run, resume=None)
    before, _ = loading.load(stage_one)
    expected = before.model.multi_modal_projector.state_dict()
    found = {
        name.split("multi_modal_projector.modules_to_save.default.")[-1].split("multi_modal_projector.")[-1]: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "multi_modal_projector" in name
    }
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


def test_lora_continues_from_a_lora_checkpoint(tiny_parts: Parts, tmp_path: Path) -> None:
    model, processor = build_model(tiny_parts, **STAGES["finetune_lora"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    loading.save(model, processor, tmp_path / "lora", stage="finetune_lora")
    flags = ["--init_from", str(tmp_path / "lora"), "--lora_enable", "--lora_r"]
    continued, _ = assembly.load_model(parse(tmp_path, *flags, "2"), resume=None)
    assert fingerprints(continued) == fingerprints(model)
    run = parse(tmp_path, *flags[:-1], "--lora_alpha", "16")
    assert (run.model.lora_r, run.model.lora_alpha, run.model.lora_dropout) == (2, 16, 0.05)  # also what the card tells
    with pytest.raises(UserError, match="has 2; give --lora_r 2, or for a new LoRA merge"):
        assembly.load_model(parse(tmp_path, *flags, "4"), resume=None)
    with pytest.raises(UserError, match=r"has 16; give --lora_alpha 16"):
        assembly.load_model(parse(tmp_path, *flags, "2", "--lora_alpha", "32"), resume=None)


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--variant", "pooling"], "--variant pooling does not fit"),
        (["--sfe_sides", "12"], "--sfe_sides"),
        (["--mm_vision_select_layer", "-1"], r"--mm_vision_select_layer -1 does not fit .* vision_feature_layer is -2"),
    ],
)
def test_another_variant_than_the_checkpoints_is_refused(
    stage_one: Path, tmp_path: Path, flags: list[str], culprit: str
) -> None:
    with pytest.raises(UserError, match=culprit):
        assembly.load_model(parse(tmp_path, "--init_from", str(stage_one), *flags), resume=None)


def test_another_tower_than_the_checkpoints_is_refused(stage_one: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vision_tower other/tower differs"):
        assembly.load_model(parse(tmp_path, "--init_from", str(stage_one), "--vision_tower", "other/tower"), None)


def test_the_processor_is_set_to_the_runs_conversation(stage_one: Path, tmp_path: Path) -> None:
    flags = ["--init_from", str(stage_one), "--version", "llama_2", "--image_aspect_ratio", "pad"]
    _, processor = assembly.load_model(parse(tmp_path, *flags, "--model_max_length", "300"), resume=None)
    assert processor.conversation_template == "llama_2"
    assert processor.image_processor.image_aspect_ratio == "pad"
    assert processor.tokenizer.model_max_length == 300


def test_a_plan_has_the_same_parameters_as_the_model_and_no_weights(tiny_parts: Parts, tmp_path: Path) -> None:
    llm, tower = map(str, tiny_parts)
    flags = ["--model_name_or_path", llm, "--vision_tower", tower, "--sfe_channels", "8", "--lora_enable"]
    run = parse(tmp_path, *flags)
    planned, _ = assembly.plan_model(run)
    loaded, _ = assembly.load_model(run, resume=None)
    shapes = [{name: (p.shape, p.requires_grad) for name, p in m.named_parameters()} for m in (planned, loaded)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in planned.parameters())
