"""4-bit and 8-bit weights: the LLM's linear layers alone, near to exact ones, for every kind of checkpoint."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig

import llava_sp
from llava_sp import LlavaSPForCausalLM
from llava_sp.model import loading, trainable
from llava_sp.model.quantization import count, quantization_config
from llava_sp.playground import BASE
from llava_sp.utils.errors import UserError
from tests.model.test_loading import build, example, perturb_trainable

pytest.importorskip("bitsandbytes")

LAYERS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
CLOSE = {"4bit": 0.3, "8bit": 0.05}


@pytest.fixture(scope="module")
def folders(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, all of them with about the same weights."""
    root = tmp_path_factory.mktemp("quantised")
    model, processor = build(tiny_parts)
    trainable.set_trainable(model, ["projector"])
    perturb_trainable(model)
    loading.save(model, processor, root / "projector", stage="pretrain")
    tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    perturb_trainable(tuned)
    loading.save(tuned, processor, root / "adapter", stage="finetune_lora")
    merged, _ = llava_sp.load(root / "adapter")
    trainable.set_trainable(merged, ["projector", "llm"])
    loading.save(merged, processor, root / "full", stage="finetune")
    return {kind: root / kind for kind in ("projector", "adapter", "full")}


def quantised_layers(model: nn.Module) -> dict[str, str]:
    names = {name: type(module).__name__ for name, module in model.named_modules()}
    return {name.replace(".base_layer", ""): kind for name, kind in names.items() if kind in LAYERS.values()}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("kind", ["projector", "adapter", "full"])
def test_only_the_llms_linear_layers_are_quantised(folders: dict[str, Path], kind: str, quantization: str) -> None:
    exact, _ = llava_sp.load(folders[kind])
    expected = exact(**example(exact)).logits[..., : exact.config.llm_vocab_size]
    model, _ = llava_sp.load(folders[kind], quantization=quantization)
    assert type(model) is LlavaSPForCausalLM
    inside = exact.model.language_model.named_modules()
    linear = {f"model.language_model.{name}" for name, module in inside if isinstance(module, nn.Linear)}
    assert quantised_layers(model) == dict.fromkeys(linear, LAYERS[quantization])
    found = model(**example(model)).logits[..., : exact.config.llm_vocab_size]
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < CLOSE[quantization]
    assert count(model.model.language_model.layers[0].mlp.up_proj.weight) == 64 * 128


def test_an_adapter_to_train_stays_one(folders: dict[str, Path]) -> None:
    model, _ = llava_sp.load(folders["adapter"], quantization="4bit", merge=False)
    assert isinstance(model, PeftModel)
    assert {kind for kind in quantised_layers(model).values()} == {"Linear4bit"}
    assert set(trainable.trainable_parameter_groups(model)) == {"lora", "projector"}


def test_4_bit_layers_compute_in_the_models_type(folders: dict[str, Path]) -> None:
    for kind in ("adapter", "full"):
        model, _ = llava_sp.load(folders[kind], quantization="4bit", dtype=torch.bfloat16)
        types = {module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
        assert types == {model.dtype} == {torch.bfloat16}


def test_layers_of_any_width_work_in_4_bits() -> None:
    parts = str(BASE / "llm"), str(BASE / "vision_tower")  # 344 wide inside, no multiple of 32
    model, _ = loading.build(*parts, quantization_config=quantization_config("4bit"))
    with torch.inference_mode():
        assert model(**example(model)).logits.isfinite().all()


def test_from_pretrained_takes_transformers_settings(folders: dict[str, Path]) -> None:
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    model = LlavaSPForCausalLM.from_pretrained(folders["adapter"], quantization_config=settings)
    assert {kind for kind in quantised_layers(model).values()} == {"Linear8bitLt"}


def test_a_model_saved_in_4_bits_loads_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    model, processor = llava_sp.load(folders["full"], quantization="4bit")
    loading.save(model, processor, tmp_path, stage="finetune")
    again, _ = llava_sp.load(tmp_path)
    assert torch.equal(again(**example(again)).logits, model(**example(model)).logits)


def test_a_missing_bitsandbytes_and_an_unknown_kind_are_told(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="'3bit'; use '4bit', '8bit'"):
        llava_sp.load(folders["full"], quantization="3bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[bitsandbytes\]'"):
        llava_sp.load(folders["full"], quantization="4bit")
