"""Every stage starts from every checkpoint, with exactly its weights; LoRA twice; QLoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from llava_sp.convert.export import merge
from llava_sp.model import loading
from llava_sp.model.trainable import plain_model, trainable_parameter_groups
from llava_sp.train import assembly
from llava_sp.train.command_line import collect
from llava_sp.train.report import memory_estimate
from llava_sp.train.run import train
from llava_sp.utils.errors import UserError
from tests.model.test_loading import example
from tests.train.test_assembly import parse
from tests.train.tools import build_model

STAGES: dict[str, list[str]] = {
    "pretrain": ["--tune_mm_mlp_adapter"],
    "finetune_lora": ["--lora_enable", "--lora_r", "4", "--lora_dropout", "0"],
    "finetune": [],
}
KINDS = {"pretrain": "projector", "finetune_lora": "adapter", "finetune": "full"}


@pytest.fixture(scope="module")
def checkpoints(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each stage, all it trains moved from where it was, and the LoRA merged."""
    root = tmp_path_factory.mktemp("continuing")
    for stage, arguments in (
        ("pretrain", {"tune_mm_mlp_adapter": True}),
        ("finetune_lora", {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.0}),
        ("finetune", {}),
    ):
        model, processor = build_model(tiny_parts, **arguments)
        with torch.no_grad():
            for named in trainable_parameter_groups(model).values():
                for _, parameter in named:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        loading.save(model, processor, root / stage, stage=stage)
    merge(str(root / "finetune_lora"), str(root / "merged"))
    return {path.name: path for path in root.iterdir()}


def logits(model: Any) -> torch.Tensor:
    plain = plain_model(model)
    with torch.no_grad():
        return model.eval()(**example(plain)).logits[..., : plain.config.llm_vocab_size]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", ["pretrain", "finetune_lora", "finetune", "merged"])
def test_every_stage_starts_from_every_checkpoint(
    start: str, stage: str, checkpoints: dict[str, Path], short_run: list[str], tmp_path: Path
) -> None:
    flags = ["--init_from", str(checkpoints[start]), *STAGES[stage]]
    model, _ = assembly.load_model(parse(tmp_path, *flags), resume=None)
    before, _ = loading.load(checkpoints[start])
    torch.testing.assert_close(logits(model), logits(before), atol=1e-4, rtol=1e-4)

    output = tmp_path / "out"
    train([*short_run, *flags, "--max_steps", "1", "--output_dir", str(output)], ranks=1)
    for folder in (output, output / "checkpoint-1"):
        after, _ = loading.load(folder)
        card = loading.read_card(str(folder))
        assert card is not None
        assert card.kind == KINDS[stage]
        assert (logits(after) - logits(before)).abs().max() > 1e-3


def test_a_lora_that_is_continued_is_the_same_lora(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    first = checkpoints["finetune_lora"]
    flags = ["--lora_weight_path", str(first), *STAGES["finetune_lora"]]  # LLaVA's name for --init_from
    assert collect(["--init_from", "elsewhere", *flags])["init_from"] == str(first)
    model, processor = assembly.load_model(parse(tmp_path, *flags), resume=None)
    loading.save(model, processor, tmp_path / "again", stage="finetune_lora")
    weights = load_file(first / "adapter_model.safetensors")
    found = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    before, after = loading.read_card(str(first)), loading.read_card(str(tmp_path / "again"))
    assert before is not None
    assert after is not None
    assert (after.parts, after.fingerprint) == (before.parts, before.fingerprint)


def test_a_new_lora_on_a_merged_one_stands_on_the_merged_model(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--init_from", str(checkpoints["merged"]), "--lora_enable", "--lora_r", "2"]  # another rank is fine
    model, processor = assembly.load_model(parse(tmp_path, *flags), resume=None)
    loading.save(model, processor, tmp_path / "second", stage="finetune_lora")
    card = loading.read_card(str(tmp_path / "second"))
    assert card is not None
    assert card.parts == {"model": str(checkpoints["merged"])}
    with pytest.raises(UserError, match="another LLM than that of"):
        loading.load(tmp_path / "second", base=str(checkpoints["pretrain"]))


def test_another_base_is_refused_unless_it_is_wanted(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--init_from", str(checkpoints["finetune_lora"]), *STAGES["finetune"]]
    other = ["--model_name_or_path", str(checkpoints["finetune"])]
    with pytest.raises(UserError, match="was trained with another LLM than that of"):
        assembly.load_model(parse(tmp_path, *flags, *other), resume=None)
    assembly.load_model(parse(tmp_path, *flags, *other, "--allow_other_base"), resume=None)


@pytest.mark.parametrize(("bits", "optim"), [("4", "adamw_bnb_8bit"), ("8", "adamw_torch")])
def test_qlora_trains_resumes_exactly_and_loads(
    bits: str, optim: str, checkpoints: dict[str, Path], short_run: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    start = ["--init_from", str(checkpoints["pretrain"]), "--lora_enable", "--lora_r", "4", "--bits", bits]
    precision = ["--bf16", "True", "--gradient_checkpointing", "--optim", optim]
    whole, cut = (["--output_dir", str(tmp_path / name)] for name in ("whole", "cut"))
    flags = [*short_run, *start, *precision, "--max_steps", "3"]
    train([*flags, *whole], ranks=1)
    train([*flags, *cut, "--stop_after_steps", "2"], ranks=1)
    train([*flags, *cut], ranks=1)
    expected = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    found = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in expected.values()} == {torch.float32}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    merged, _ = loading.load(tmp_path / "whole")
    beside, _ = loading.load(tmp_path / "whole", quantization=f"{bits}bit")
    error = (logits(beside) - logits(merged)).norm() / logits(merged).norm()
    assert 0 < error < 0.3


def test_qlora_holds_the_llm_alone_in_few_bits(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ["--init_from", str(checkpoints["pretrain"]), *STAGES["finetune_lora"], "--bits", "4", "--bf16", "True"]
    model, _ = assembly.load_model(parse(tmp_path, *flags, "--quant_type", "fp4", "--double_quant", "False"), None)
    assert isinstance(model, PeftModel)
    layer = model.base_model.model.model.language_model.layers[0].mlp.up_proj
    assert layer.weight.quant_state.quant_type == "fp4"
    assert not layer.weight.quant_state.nested
    assert layer.base_layer.compute_dtype == torch.bfloat16
    groups = trainable_parameter_groups(model)
    assert set(groups) == {"lora", "projector"}
    assert {parameter.dtype for named in groups.values() for _, parameter in named} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16, torch.uint8}


def test_stage_1_trains_beside_a_quantised_model(
    checkpoints: dict[str, Path], short_run: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    flags = [*short_run, *STAGES["pretrain"], "--bits", "4", "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is a LoRA, which cannot be merged into an LLM of 4 bits"):
        assembly.load_model(parse(tmp_path, *flags, "--init_from", str(checkpoints["finetune_lora"])), resume=None)
    train([*flags, "--init_from", str(checkpoints["finetune"])], ranks=1)
    loading.load(tmp_path / "out")


def test_the_memory_estimate_knows_the_bits(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--init_from", str(checkpoints["pretrain"]), *STAGES["finetune_lora"], "--bf16", "True"]

    def estimate(*more: str) -> dict[str, float]:
        run = parse(tmp_path, *flags, *more)
        return memory_estimate(assembly.plan_model(run)[0], run)

    exact, packed, small = estimate(), estimate("--bits", "4"), estimate("--bits", "4", "--optim", "paged_adamw_8bit")
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)  # of the tiny LLM's two layers
    assert exact["weights"] - packed["weights"] == linear * (2 - 0.5)
    assert packed["optimizer states"] == exact["optimizer states"] == 4 * small["optimizer states"]
