"""A conversion never holds a whole model: its peak memory grows by far less than the model's size."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llava_sp.convert.export import to_official
from llava_sp.model import loading, trainable
from tests.tiny import VOCABULARY

# Not `resource.getrusage`: its peak is the parent's where that was higher.
MEASURE = """
import re, sys
from pathlib import Path
from llava_sp.convert.export import merge
from llava_sp.convert.official import import_official
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak()
{"merge": merge, "official": import_official}[sys.argv[1]](sys.argv[2], sys.argv[3])
print(peak() - before)
"""
MIB = 2**20


def peak_growth(conversion: str, source, output) -> int:
    """Returns by how many bytes the peak of a process's memory grew over what its imports take."""
    command = [sys.executable, "-c", MEASURE, conversion, str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return 1024 * int(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def adapter(tiny_parts, tmp_path_factory):
    """An adapter on a LLaMA of 200 MiB in matrices of 1 to 2 MiB."""
    root = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1024, num_hidden_layers=20, num_attention_heads=8
    )
    llm = root / "llm"
    LlamaForCausalLM(config).save_pretrained(llm)
    for file in tiny_parts[0].glob("*token*"):
        (llm / file.name).write_bytes(file.read_bytes())
    model, processor = loading.build(str(llm), str(tiny_parts[1]), overrides={"sfe_channels": 8})
    model = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    loading.save(model, processor, root / "adapter", stage="finetune_lora")
    return root / "adapter"


def test_merging_and_importing_stream(adapter, tmp_path):
    growth = {"merge": peak_growth("merge", adapter, tmp_path / "merged")}
    size = (tmp_path / "merged" / "model.safetensors").stat().st_size
    to_official(str(adapter), str(tmp_path / "official"))
    weights = tmp_path / "official" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    growth["official"] = peak_growth("official", tmp_path / "official", tmp_path / "imported")
    assert size > 180 * MIB
    assert max(growth.values()) < size / 3, {name: f"{value / MIB:.0f} MiB" for name, value in growth.items()}
