"""A folder for the Hub loads with and without this package imported first, and its model card invents nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers.utils import DummyObject

from llava_sp.convert.hub import _public, to_hub
from llava_sp.model import loading, trainable
from llava_sp.utils.errors import UserError

# What a user types; the program itself never trusts code from a checkpoint.
TRUSTING = """
import sys, transformers
assert "llava_sp" not in sys.modules
for auto in sys.argv[2:]:
    found = getattr(transformers, auto).from_pretrained(sys.argv[1], trust_remote_code=True)
    print(auto, type(found).__module__, type(found).__name__)
"""
IMPORTING = """
import sys, llava_sp, transformers
for auto in sys.argv[2:]:
    found = getattr(transformers, auto).from_pretrained(sys.argv[1])
    print(auto, type(found).__module__, type(found).__name__)
"""
CLASSES = {
    "AutoConfig": "llava_sp.model.configuration_llava_sp LlavaSPConfig",
    "AutoModel": "llava_sp.model.modeling_llava_sp LlavaSPModel",
    "AutoModelForCausalLM": "llava_sp.model.modeling_llava_sp LlavaSPForCausalLM",
    "AutoModelForImageTextToText": "llava_sp.model.modeling_llava_sp LlavaSPForCausalLM",
    "AutoProcessor": "llava_sp.model.processing_llava_sp LlavaSPProcessor",
    "AutoImageProcessor": "llava_sp.model.image_processing_llava_sp LlavaSPImageProcessor",
}

if isinstance(transformers.AutoImageProcessor, DummyObject):  # in older versions of transformers, without torchvision
    del CLASSES["AutoImageProcessor"]


@pytest.fixture(scope="module")
def adapter(tiny_parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})
    model = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    arguments = {"data_path": "/home/someone/data/mix.json", "learning_rate": 0.0002}
    loading.save(model, processor, folder, stage="finetune_lora", details={"arguments": arguments, "git": "abc"})
    (folder / "metrics.json").write_text(json.dumps({"steps": 7, "train_loss": 0.5}))
    return folder


@pytest.fixture(scope="module")
def hub(adapter, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "llava-sp-tiny"
    scores = folder.parent / "scores.json"
    scores.write_text(json.dumps({"pope": {"f1": 86.5}, "gqa": 62.25, "note": "by hand"}))
    agreement = to_hub(str(adapter), str(folder), licence="cc-by-nc-4.0", scores=str(scores), verify=True)
    assert max(agreement.errors) < 1e-5
    return folder


@pytest.mark.parametrize("script", [TRUSTING, IMPORTING], ids=["trusting", "importing"])
@pytest.mark.parametrize("first", ["AutoProcessor", "AutoModelForImageTextToText"])
def test_every_auto_class_finds_it(first, script, hub, tmp_path):
    """Whichever is asked first: the stub registers all classes as soon as one of them is found."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", script, str(hub), first, *CLASSES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith("Auto"))
    assert found == CLASSES


def test_its_code_is_one_import(hub):
    code = [file.read_text() for file in hub.glob("*.py")]
    assert len(code) == 1
    assert code[0].startswith("from llava_sp import ")
    assert len(code[0].splitlines()) == 1


def test_the_model_card_tells_what_is_known(hub, tiny_parts):
    _, head, body = (hub / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava-sp"],
        "license": "cc-by-nc-4.0",
    }
    for row in ("learning_rate | 0.0002", "training data | mix.json", "pope / f1 | 86.5", "gqa | 62.25", "code | abc"):
        assert f"| {row} |" in body
    assert "| train_loss | 0.5 |" in body
    texts = [file.read_text() for file in hub.glob("*.*") if file.suffix in (".md", ".json", ".py")]
    for secret in ("/home/someone", str(tiny_parts[0])):
        assert not any(secret in text for text in texts)


def test_the_model_card_invents_nothing(tiny_parts, tmp_path):
    model, processor = loading.build(*map(str, tiny_parts), variant="none", dtype=torch.float32)
    loading.save(model, processor, tmp_path / "model", stage="finetune")
    to_hub(str(tmp_path / "model"), str(tmp_path / "hub"))
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "license" not in card
    for section in (
        "## Hyper-parameters\n\nNot recorded.",
        "## Scores\n\nNone were given.",
        "## Licence\n\nNot stated.",
    ):
        assert section in card
    assert "| training data | not recorded |" in card
    (tmp_path / "scores.json").write_text("[1]")
    with pytest.raises(UserError, match=r"scores\.json is no JSON object"):
        to_hub(str(tmp_path / "model"), str(tmp_path / "other"), scores=str(tmp_path / "scores.json"))


@pytest.mark.parametrize(
    ("told", "public"),
    [
        ("/home/me/my data/mix.json", "mix.json"),
        ("~/mix.json", "mix.json"),
        ("../../home/me/mix.json", "mix.json"),
        ("a.json,/home/me/b.json", "a.json,b.json"),
        ("--data_path=/home/me/b.json --epochs 1/2", "--data_path=b.json --epochs 1/2"),
        ("https://me:token@host/of/mine", "https://host/of/mine"),
        ({"list": ["/home/me/a", 3, None], "inside": {"x": "/a/b"}}, {"list": ["a", 3, None], "inside": {"x": "b"}}),
        *((same, same) for same in ("meta-llama/Llama-3-8B", "data/mix.json", "https://host/a/b", "and/or", 0.5)),
    ],
)
def test_paths_of_this_machine_and_passwords_are_not_published(told, public):
    assert _public(told) == public
