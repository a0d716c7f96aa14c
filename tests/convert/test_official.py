"""Every official layout is told from its keys; what is missing, left over, damaged or hostile is refused by name."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava_sp import LlavaSPForCausalLM
from llava_sp.convert.layout import read_layout
from llava_sp.convert.official import import_official
from llava_sp.model import loading
from llava_sp.model.spatial.feature_extractor import FullKernel
from llava_sp.model.variants import VARIANTS
from llava_sp.utils.errors import UserError

OFFICIAL = Path(__file__).parent.parent / "fixtures" / "official"
SCALES = ("small", "mid", "huge")
TAILS = ("0.weight", "0.bias", "1.weight", "1.bias")


def official_projector(model: LlavaSPForCausalLM) -> dict[str, torch.Tensor]:
    """Our projector in the official layout, written from its description and not from the importer's table."""
    config, projector = model.config, model.model.multi_modal_projector
    tensors = {}
    for number, layer in (("0", projector.linear_1), ("2", projector.linear_2)):
        tensors.update({f"mm_projector.{number}.{name}": value for name, value in layer.state_dict().items()})
    if projector.spatial is None:
        return tensors
    transformer = config.sfe_operator == "transformer"
    output = "tfm_linear.1" if transformer else "conv_linear.1"
    tensors.update({f"{output}.{name}": value for name, value in projector.spatial.output.state_dict().items()})
    for side, operator in zip(config.sfe_sides, projector.spatial.sfe.operators, strict=True):
        if transformer:
            tensors[f"query_{side}"] = operator.query
            tensors.update({f"tfm_{side}.{name}": value for name, value in operator.transformer.state_dict().items()})
        else:
            pooled = config.sfe_maps == "pooling" and side != config.grid_side
            name = f"conv_{side}.1.weight" if pooled else f"conv_{side}.weight"
            tensors[name] = FullKernel.to_convolution(operator.weight, side)
    scales = [] if projector.spatial.dfi is None else projector.spatial.dfi.scales
    for index, scale in enumerate(scales):
        suffix, convolution = ("", "conv_CM") if len(scales) == 1 else (f"_{SCALES[index]}", f"conv_{SCALES[index]}")
        tensors[f"{convolution}.weight"] = FullKernel.to_convolution(scale.detail.weight, scale.detail.side)
        for name in ("query", "key", "value"):
            state = getattr(scale, name).state_dict()
            tensors.update({f"{name}_projector{suffix}.{tail}": value for tail, value in state.items()})
    return tensors


def write_official(model: LlavaSPForCausalLM, llm: Path, tower: Path, folder: Path) -> Path:
    """Saves a model as a full official checkpoint, without the tower's weights."""
    tensors = {f"model.{name}": tensor for name, tensor in official_projector(model).items()}
    tensors.update(load_file(llm / "model.safetensors"))
    folder.mkdir()
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in llm.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((llm / "config.json").read_text())
    llava = {"mm_vision_tower": str(tower), "mm_vision_select_layer": -2, "image_aspect_ratio": "pad"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava_llama", **llava}))
    return folder


@pytest.fixture(scope="module")
def tower_24(tmp_path_factory) -> Path:
    """A tower with the paper's 24 x 24 grid, so that every ablation fits."""
    folder = tmp_path_factory.mktemp("tower_24")
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=96, patch_size=4
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(crop_size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_is_told_from_its_keys(variant, tiny_parts, tower_24, tmp_path):
    model, _ = loading.build(
        str(tiny_parts[0]),
        str(tower_24),
        variant=variant,
        overrides={"sfe_channels": 6, "sfe_transformer_layers": 2},
    )
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(std=0.3)
        if len(model.config.dfi_kernels) > 1:  # the official code reads the first scale's value projection alone
            scales = model.model.multi_modal_projector.spatial.dfi.scales
            for scale in scales[1:]:
                scale.value.load_state_dict(scales[0].value.state_dict())
    report = import_official(
        write_official(model, tiny_parts[0], tower_24, tmp_path / "official"), tmp_path / "imported"
    )
    imported, _ = loading.load(tmp_path / "imported")
    for name in loading.SPATIAL_FIELDS:
        if name != "sfe_channels" or (model.config.sfe_operator == "conv" and variant != "none"):
            assert getattr(imported.config, name) == getattr(model.config, name), name
    state = imported.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert report.initialised == []
    assert all(name.startswith("value_projector_") for name in report.left_over)
    assert bool(report.left_over) == (len(model.config.dfi_kernels) > 1)


def test_numbers_in_names_need_not_be_sides():
    shapes = {f"conv_{index}.weight": torch.Size((5, 8, 2 * index, 2 * index)) for index in range(1, 9)}
    layout = read_layout({**shapes, "conv_linear.1.weight": torch.Size((16, 5))}, 16)
    assert layout.fields["sfe_sides"] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert layout.official("spatial.sfe.operators.7.weight").name == "conv_8.weight"


@pytest.fixture
def cropping(tmp_path) -> Path:
    return Path(shutil.copytree(OFFICIAL / "cropping", tmp_path / "cropping"))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_left_over_tensors_are_listed_and_may_be_allowed(cropping, tmp_path):
    def damage(tensors):
        del tensors["model.conv_8.weight"], tensors["model.key_projector.1.bias"]
        tensors["model.image_newline"] = torch.zeros(64)

    rewrite(cropping, damage)
    with pytest.raises(UserError) as error:
        import_official(cropping, tmp_path / "out")
    for name in ("conv_8.weight", "key_projector.1.bias", "image_newline"):
        assert name in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_allowed_tensors_are_initialised_or_ignored(cropping, tmp_path):
    def damage(tensors):
        del tensors["model.key_projector.1.bias"]
        tensors["model.image_newline"] = torch.zeros(64)

    rewrite(cropping, damage)
    report = import_official(
        cropping, tmp_path / "out", allow_missing=["key_projector.1.bias"], allow_left_over=["image_newline"]
    )
    assert (report.initialised, report.left_over) == (["key_projector.1.bias"], ["image_newline"])
    assert loading.read_card(str(tmp_path / "out")).details["initialised"] == ["key_projector.1.bias"]


@pytest.mark.parametrize(
    "name,shape,message",
    [
        ("model.conv_linear.1.bias", (63,), "conv_linear.1.bias has the shape"),
        ("model.mm_projector.0.weight", (64, 15), "mm_projector.0.weight has the shape"),
        ("model.conv_8.weight", (8, 16, 8, 7), "conv_8.weight has the shape"),
        ("model.layers.1.mlp.up_proj.weight", (3, 3), "LLM does not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(cropping, tmp_path, name, shape, message):
    rewrite(cropping, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(UserError, match=message):
        import_official(cropping, tmp_path / "out")


def test_a_truncated_file_is_named(cropping, tmp_path):
    weights = cropping / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        import_official(cropping, tmp_path / "out")


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_hostile_pickle_is_never_run(cropping, tmp_path):
    (cropping / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (cropping / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="none of it was run"):
        import_official(cropping, tmp_path / "out")
    torch.save({"weight": Canary(canary)}, cropping / "pytorch_model.bin")
    with pytest.raises(UserError, match="none of it was run"):
        import_official(cropping, tmp_path / "out")
    assert not canary.exists()


def test_sharded_pickles_are_read(cropping, tmp_path):
    tensors = load_file(cropping / "model.safetensors")
    (cropping / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for shard, chosen in shards.items():
        torch.save({name: tensors[name] for name in chosen}, cropping / shard)
    index = {"weight_map": {name: shard for shard, chosen in shards.items() for name in chosen}}
    (cropping / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert import_official(cropping, tmp_path / "out").source == "full"
    (cropping / "pytorch_model-2.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-2\.bin is missing"):
        import_official(cropping, tmp_path / "other")


def test_the_projector_alone_stands_on_a_base(tmp_path):
    source = OFFICIAL / "cropping_lora"
    folder = tmp_path / "pretrain"
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    torch.save(torch.load(source / "non_lora_trainables.bin", weights_only=True), folder / "model.bin")
    with pytest.raises(UserError, match="give it with --base"):
        import_official(folder, tmp_path / "out", vision_tower=str(source / "clip"))
    report = import_official(
        folder,
        tmp_path / "out",
        base=str(source / "base"),
        vision_tower=str(source / "clip"),
        conversation_template="plain",
    )
    assert report.source == "projector"
    assert loading.read_card(str(tmp_path / "out")).conversation_template == "plain"


def test_an_intermediate_projector_says_what_it_lacks(tmp_path):
    source = OFFICIAL / "cropping_lora"
    folder = tmp_path / "checkpoint-100"
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    kept = ("mm_projector.", "conv_linear.", "conv_4.")
    tensors = torch.load(source / "non_lora_trainables.bin", weights_only=True)
    tensors = {name: value for name, value in tensors.items() if any(part in name for part in kept)}
    torch.save(tensors, folder / "mm_projector.bin")
    arguments = {"base": str(source / "base"), "vision_tower": str(source / "clip")}
    with pytest.raises(UserError, match=r"take the model\.bin of the end of the run") as error:
        import_official(folder, tmp_path / "out", **arguments)
    lacking = re.search("missing: (.*?) \\(", str(error.value))[1].split(", ")
    attention = [f"{name}_projector.{tail}" for name in ("key", "query", "value") for tail in TAILS]
    assert lacking == sorted([*(f"conv_{side}.weight" for side in (8, 12, 16, 20, 24)), "conv_CM.weight", *attention])
    with pytest.raises(UserError, match="cannot be verified"):
        import_official(folder, tmp_path / "out", **arguments, allow_missing=lacking, verify=True)
    assert import_official(folder, tmp_path / "out", **arguments, allow_missing=lacking).initialised == lacking


def test_a_lora_output_finds_the_base_that_it_names(tmp_path):
    folder = Path(shutil.copytree(OFFICIAL / "cropping_lora", tmp_path / "lora"))
    config = json.loads((folder / "adapter_config.json").read_text())
    named = {**config, "base_model_name_or_path": str(folder / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    report = import_official(folder, tmp_path / "out", verify=True)
    assert (report.source, len(report.agreement.errors)) == ("lora", 3)
    assert max(report.agreement.errors) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_can_be_chosen(cropping, dtype, tmp_path):
    report = import_official(cropping, tmp_path / "out", dtype=dtype, verify=True)
    assert max(report.agreement.errors) <= report.agreement.tolerance
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert loading.load(tmp_path / "out")[0].dtype == dtype


def test_what_is_no_checkpoint_is_refused(cropping, tmp_path):
    with pytest.raises(UserError, match=r"Cannot load a checkpoint from .*absent"):
        import_official(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        import_official(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match=r"give it with --base"):
        import_official(OFFICIAL / "cropping_lora", tmp_path / "out")
    with pytest.raises(UserError, match="adapter does not fit"):
        other = Path(shutil.copytree(OFFICIAL / "cropping_lora", tmp_path / "lora"))
        adapter = torch.load(other / "adapter_model.bin", weights_only=True)
        adapter.popitem()
        torch.save(adapter, other / "adapter_model.bin")
        import_official(other, tmp_path / "out", base=str(other / "base"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(UserError, match="full is not empty"):
        import_official(cropping, tmp_path / "full")
    config = cropping / "config.json"
    config.write_text(config.read_text().replace('"llava_llama"', '"bert"'))
    with pytest.raises(UserError, match="model type 'bert'"):
        import_official(cropping, tmp_path / "out")


def test_the_command_reports_in_plain_words(cropping, tmp_path):
    command = [sys.executable, "-m", "llava_sp.convert", "official", "--checkpoint", str(cropping)]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "imported a full checkpoint" in done.stdout
    assert "sfe_maps: cropping" in done.stdout
    again = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error: The output folder")
    assert "Traceback" not in again.stderr


def test_a_checkpoint_of_ours_is_told_apart(tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, processor = loading.build(*map(str, tiny_parts))
    loading.save(model, processor, tmp_path / "ours", stage="finetune")
    with pytest.raises(UserError, match="checkpoint of this project already"):
        import_official(tmp_path / "ours", tmp_path / "out")
