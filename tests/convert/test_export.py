"""Our checkpoints merged into one, and in the official layout and back again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from llava_sp import LlavaSPForCausalLM
from llava_sp.convert.export import merge, to_official
from llava_sp.convert.hub import to_hub
from llava_sp.convert.official import import_official
from llava_sp.model import loading, trainable
from llava_sp.model.variants import VARIANTS
from llava_sp.utils.errors import UserError
from tests.tiny import TOKENIZER


def randomise(model, std: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=std)


@pytest.fixture(scope="module")
def stages(tiny_parts, tmp_path_factory) -> dict[str, Path]:
    """A projector, an adapter that stands on the parts, and an adapter that stands on the projector's checkpoint."""
    root = tmp_path_factory.mktemp("stages")
    folders = {name: root / name for name in ("projector", "adapter", "adapter_on_model", "full")}
    arguments = {"overrides": {"sfe_channels": 8}, "dtype": torch.float32}
    model, processor = loading.build(*map(str, tiny_parts), **arguments)
    trainable.set_trainable(model, ["projector"])
    randomise(model)
    loading.save(model, processor, folders["projector"], stage="pretrain")
    loading.save(LlavaSPForCausalLM.from_pretrained(folders["projector"]), processor, folders["full"], stage="finetune")
    for name, start in (("adapter", None), ("adapter_on_model", folders["full"])):
        model, processor = loading.load(start) if start else loading.build(*map(str, tiny_parts), **arguments)
        model = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
        randomise(model)
        loading.save(model, processor, folders[name], stage="finetune_lora", details={"step": 7})
    return folders


def scaled(llm: Path, folder: Path) -> Path:
    """Copies an LLM, with weights of its own."""
    shutil.copytree(llm, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["projector", "adapter", "adapter_on_model", "full"])
def test_merging_equals_peft(kind, stages, tmp_path):
    agreement = merge(str(stages[kind]), str(tmp_path / "out"), verify=True)
    assert max(agreement.errors) < 1e-5
    expected, _ = loading.load(stages[kind])
    merged, processor = loading.load(tmp_path / "out")
    for (name, found), wanted in zip(merged.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    card = loading.read_card(str(tmp_path / "out"))
    assert (card.kind, card.parts) == ("full", {})
    assert card.details == loading.read_card(str(stages[kind])).details
    assert processor.num_image_tokens == merged.config.image_seq_length


def test_the_type_can_be_chosen(stages, tmp_path):
    agreement = merge(str(stages["adapter"]), str(tmp_path / "out"), dtype=torch.bfloat16, verify=True)
    assert 1e-4 < max(agreement.errors) <= agreement.tolerance
    expected, _ = loading.load(stages["adapter"])
    for name, found in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(found, expected.state_dict()[name].bfloat16(), msg=name)
    assert loading.load(tmp_path / "out")[0].dtype == torch.bfloat16


def test_an_adapter_of_another_base_is_refused_by_shape_and_by_weights(stages, tiny_parts, tmp_path):
    other = scaled(tiny_parts[0], tmp_path / "other")
    arguments = {"base": str(other), "verify": True}
    with pytest.raises(UserError, match="was trained with another LLM"):
        merge(str(stages["adapter"]), str(tmp_path / "out"), **arguments)
    assert not list(tmp_path.glob("*out*"))

    shallow = Path(shutil.copytree(other, tmp_path / "shallow"))
    LlamaForCausalLM.from_pretrained(other, num_hidden_layers=1).save_pretrained(shallow)
    with pytest.raises(UserError, match=r"shallow is too small a base: 9 tensors are missing"):
        merge(str(stages["adapter"]), str(tmp_path / "out"), base=str(shallow))

    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    tensors = load_file(other / "model.safetensors")
    for name in [name for name in tensors if "mlp" in name]:
        tensors[name] = tensors[name][:96] if "down" not in name else tensors[name][:, :96].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit the LLM .*other.*trained on another base"):
        merge(str(stages["adapter"]), str(tmp_path / "out"), base=str(other), allow_other_base=True)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("convert", [merge, to_official, to_hub])
def test_another_base_that_is_allowed_is_also_what_the_result_is_verified_with(convert, stages, tiny_parts, tmp_path):
    arguments = {"base": str(scaled(tiny_parts[0], tmp_path / "other")), "allow_other_base": True, "verify": True}
    agreement = convert(str(stages["adapter"]), str(tmp_path / "out"), **arguments)
    assert max(agreement.errors) < 1e-4


def test_a_damaged_adapter_is_refused(stages, tmp_path):
    damaged = Path(shutil.copytree(stages["adapter"], tmp_path / "damaged"))
    file = damaged / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.lora_A\.weight"):
        merge(str(damaged), str(tmp_path / "out"))
    config = json.loads((damaged / "adapter_config.json").read_text())
    (damaged / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match="DoRA"):
        merge(str(damaged), str(tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))


# Ablations that belong to the 24 x 24 grid, made to fit the 12 x 12 grid of the tiny tower.
OVERRIDES = {"eight_tokens": {"num_spatial_tokens": 4}, "twelve_tokens": {"num_spatial_tokens": 5}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_official_layout_and_back_is_the_same_model(variant, tiny_parts, tmp_path):
    overrides = {"sfe_channels": 8, **OVERRIDES.get(variant, {})}
    model, processor = loading.build(*map(str, tiny_parts), variant=variant, overrides=overrides)
    trainable.set_trainable(model, ["projector", "llm", "vision_tower"])
    randomise(model)
    with torch.no_grad():  # rows that no LLM was trained for are zero, and the official code has none
        model.get_input_embeddings().weight[1000:] = 0
        model.lm_head.weight[1000:] = 0
        if len(model.config.dfi_kernels) > 1:  # the official code reads the first scale's value projection alone
            scales = model.model.multi_modal_projector.spatial.dfi.scales
            for scale in scales[1:]:
                scale.value.load_state_dict(scales[0].value.state_dict())
    loading.save(model, processor, tmp_path / "ours", stage="finetune")

    agreement = to_official(str(tmp_path / "ours"), str(tmp_path / "official"), verify=True)
    assert max(agreement.errors) < 1e-5
    import_official(tmp_path / "official", tmp_path / "back")
    back, _ = loading.load(tmp_path / "back")
    for name in loading.SPATIAL_FIELDS:
        if name != "sfe_channels" or (model.config.sfe_operator == "conv" and variant != "none"):
            assert getattr(back.config, name) == getattr(model.config, name), name
    for (name, found), wanted in zip(back.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), name


@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad"])
def test_tiles_survive_the_official_layout(merge_type, tiny_parts, tmp_path):
    pinpoints = [[96, 48], [48, 144]]
    overrides = {"sfe_channels": 8, "patch_merge_type": merge_type, "image_grid_pinpoints": pinpoints}
    model, processor = loading.build(*map(str, tiny_parts), image_aspect_ratio="anyres", overrides=overrides)
    trainable.set_trainable(model, ["projector", "llm"])
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(std=0.1)
    loading.save(model, processor, tmp_path / "ours", stage="finetune")
    agreement = to_official(str(tmp_path / "ours"), str(tmp_path / "official"), verify=True)
    assert max(agreement.errors) < 1e-5
    config = json.loads((tmp_path / "official" / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [[48, 96], [144, 48]]  # LLaVA's are (width, height)
    newline = "model.image_newline" in load_file(tmp_path / "official" / "model.safetensors")
    assert newline == (merge_type == "spatial_unpad")
    report = import_official(tmp_path / "official", tmp_path / "back", verify=True)
    assert max(report.agreement.errors) < 1e-5
    back, processor = loading.load(tmp_path / "back")
    assert (back.config.image_grid_pinpoints, back.config.patch_merge_type) == (pinpoints, merge_type)
    assert processor.image_processor.image_aspect_ratio == "anyres"
    for (name, found), wanted in zip(back.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), name


def test_the_official_folder_is_what_the_official_loader_looks_for(stages, tiny_parts, tmp_path):
    to_official(str(stages["adapter"]), str(tmp_path / "out"), vision_tower=str(tiny_parts[1]), tower_inside=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(tiny_parts[1]),
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_patch_merge_type": "flat",
        "vocab_size": 1000,
        "hidden_size": 64,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "torch_dtype": "float32",
    }
    assert {name: config.get(name) for name in expected} == expected
    assert "rope_parameters" not in config
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.conv_4.weight"].shape == (8, 16, 4, 4)
    assert tensors["model.embed_tokens.weight"].shape == tensors["lm_head.weight"].shape == (1000, 64)
    assert not any("vision_tower" in name for name in tensors)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (TOKENIZER / name).read_bytes()


def test_what_the_official_code_cannot_be_is_refused(stages, tiny_parts, tmp_path):
    overrides = {"sfe_channels": 8}
    model, processor = loading.build(*map(str, tiny_parts), variant="multi_dfi_concat", overrides=overrides)
    loading.save(model, processor, tmp_path / "multi", stage="finetune")
    with pytest.raises(UserError, match="value projection"):
        to_official(str(tmp_path / "multi"), str(tmp_path / "out"))
    two = {"sfe_channels": 8, "dfi_kernels": [5, 3]}
    model, processor = loading.build(*map(str, tiny_parts), overrides=two)
    loading.save(model, processor, tmp_path / "two", stage="finetune")
    with pytest.raises(UserError, match="not of 2"):
        to_official(str(tmp_path / "two"), str(tmp_path / "out"))
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8, "dfi_stride": 1})
    loading.save(model, processor, tmp_path / "dense", stage="finetune")
    with pytest.raises(UserError, match="stride of 2, not of 1"):
        to_official(str(tmp_path / "dense"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="--tokenizer"):
        to_official(str(stages["full"]), str(tmp_path / "out"), tokenizer=str(tiny_parts[1]))
    assert not list(tmp_path.glob("*out*"))
