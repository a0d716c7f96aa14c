"""LLaVA-1.5 in both of its layouts becomes the variant without spatial tokens, or warm-starts one with them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from llava_sp.convert.official import import_official
from llava_sp.model import loading
from llava_sp.utils.errors import UserError
from tests.convert.llava_hf import write_llava_hf
from tests.convert.test_official import write_official
from tests.tiny import VOCABULARY


@pytest.fixture(params=[False, True], ids=["transformers 5", "old names"])
def llava_hf(request, tiny_parts, tmp_path) -> Path:
    return write_llava_hf(tiny_parts, tmp_path / "llava-hf", old_names=request.param)


@pytest.fixture
def llava(tiny_parts, tmp_path) -> Path:
    """LLaVA-1.5 in its own layout, with the projector of a random model."""
    model, _ = loading.build(str(tiny_parts[0]), str(tiny_parts[1]), variant="none")
    return write_official(model, *tiny_parts, tmp_path / "llava")


def test_llava_hf_computes_the_same_here(llava_hf, tmp_path):
    report = import_official(llava_hf, tmp_path / "out", verify=True)
    assert report.source == "llava-hf"
    assert max(report.agreement.errors) < 1e-6
    model, processor = loading.load(tmp_path / "out")
    assert model.config.sfe_maps == "none"
    assert (model.config.llm_vocab_size, model.config.image_token_id) == (VOCABULARY, VOCABULARY)
    assert not model.get_input_embeddings().weight[VOCABULARY:].any()
    assert processor.num_image_tokens == model.config.image_seq_length
    source = load_file(llava_hf / "model.safetensors")
    head = next(value for name, value in source.items() if name.endswith("lm_head.weight"))
    assert torch.equal(model.lm_head.weight[:VOCABULARY], head[:VOCABULARY])


def test_a_warm_start_keeps_what_is_there_and_names_what_is_new(llava_hf, tmp_path):
    report = import_official(llava_hf, tmp_path / "one", variant="cropping", seed=1, verify=True)
    assert max(report.agreement.errors) < 1e-6
    assert "spatial.dfi.scales.0.detail.weight" in report.initialised
    assert all(name.startswith("spatial.") for name in report.initialised)
    for seed, folder in ((1, "same"), (2, "other")):
        import_official(llava_hf, tmp_path / folder, variant="cropping", seed=seed)
    one, same, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    prefix = "model.multi_modal_projector."
    assert {name.removeprefix(prefix) for name in one if f"{prefix}spatial" in name} == set(report.initialised)
    assert all(torch.equal(one[name], same[name]) for name in one)
    changed = {name.removeprefix(prefix) for name in one if not torch.equal(one[name], other[name])}
    assert "spatial.sfe.operators.0.weight" in changed
    assert changed <= set(report.initialised)
    model, _ = loading.load(tmp_path / "one")
    assert model.config.num_spatial_tokens == 6
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_original_layout(llava, tmp_path):
    report = import_official(llava, tmp_path / "out", verify=True)
    assert report.fields == {"sfe_maps": "none"}
    assert max(report.agreement.errors) < 1e-5
    warm = import_official(llava, tmp_path / "warm", variant="pooling", dtype=torch.bfloat16, verify=True)
    assert len(warm.initialised) == 7
    assert loading.load(tmp_path / "warm")[0].dtype == torch.bfloat16


def test_the_original_layout_with_lora_finds_its_base_by_itself(llava, tiny_parts, tmp_path):
    adapted = get_peft_model(
        LlamaForCausalLM.from_pretrained(tiny_parts[0]),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    folder = tmp_path / "llava-lora"
    adapted.save_pretrained(folder)
    config = json.loads((llava / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    projector = {
        f"base_model.model.{name}": value
        for name, value in load_file(llava / "model.safetensors").items()
        if "mm_projector" in name
    }
    torch.save(projector, folder / "non_lora_trainables.bin")
    report = import_official(folder, tmp_path / "out", verify=True)
    assert report.source == "lora"
    assert max(report.agreement.errors) < 1e-5
    merged = adapted.merge_and_unload().state_dict()["model.layers.1.self_attn.q_proj.weight"]
    model, _ = loading.load(tmp_path / "out")
    torch.testing.assert_close(model.model.language_model.layers[1].self_attn.q_proj.weight, merged)


def test_what_does_not_agree_is_not_kept(llava, tmp_path, monkeypatch):
    def scramble(model, prompts):
        return [torch.randn(len(prompt.before) + len(prompt.after), VOCABULARY) for prompt in prompts]

    monkeypatch.setattr("llava_sp.convert.verify.run", scramble)
    with pytest.raises(UserError, match="does not compute what its source does"):
        import_official(llava, tmp_path / "out", verify=True)
    assert not list(tmp_path.glob("*out*"))


def test_warm_starts_and_layouts_that_make_no_sense_are_refused(llava_hf, tmp_path):
    official = Path(__file__).parent.parent / "fixtures" / "official" / "cropping"
    with pytest.raises(UserError, match="has spatial tokens of its own"):
        import_official(official, tmp_path / "out", variant="pooling")
    with pytest.raises(UserError, match="Unknown variant 'spiral'"):
        import_official(llava_hf, tmp_path / "out", variant="spiral")
    other = Path(shutil.copytree(llava_hf, tmp_path / "other"))
    file = other / "model.safetensors"
    tensors = {name.replace("multi_modal_projector", "connector"): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: mm_projector\.0\.bias.*left over: .*connector"):
        import_official(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
