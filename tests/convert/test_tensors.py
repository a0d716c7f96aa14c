"""Weights are read and written as streams; what is damaged, hostile or too large is refused, and nothing is left."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_sp.convert import writing
from llava_sp.convert.tensors import FULL_FILES, LazyTensor, find_weights, read_tensors
from llava_sp.utils.errors import UserError


def lazy(**tensors: torch.Tensor) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor, name) for name, tensor in tensors.items()}


def test_what_follows_from_tensors_has_its_shape_before_its_values():
    reads = []

    def read() -> torch.Tensor:
        reads.append(1)
        return torch.arange(6.0).reshape(2, 3)

    tensor = LazyTensor("source", torch.Size((2, 3)), torch.float32, read)
    product = tensor.then(lambda a, b: (a @ b).half(), LazyTensor.of(torch.ones(3, 4), "other"))
    assert (product.shape, product.dtype, product.origin, reads) == ((2, 4), torch.float16, "source", [])
    assert product.read().tolist() == [[3.0] * 4, [12.0] * 4]
    assert reads == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shards_are_what_safetensors_reads(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 100)
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(7), "c": torch.randn(()), "d": torch.randn(4, 9).T}
    writing.write_weights(tmp_path, lazy(**tensors), dtype)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == (15 + 7 + 1 + 36) * dtype.itemsize
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name].to(dtype))
    found = read_tensors(find_weights(str(tmp_path), FULL_FILES))
    assert all(torch.equal(found[name].read(), tensor.to(dtype)) for name, tensor in tensors.items())


def test_weights_in_the_old_format_of_torch_are_read(tmp_path):
    tensor = torch.randn(3)
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors([tmp_path / "pytorch_model.bin"])["a"].read(), tensor)


def test_a_truncated_shard_is_named_before_anything_is_written(tmp_path):
    save_file({"a": torch.zeros(100)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(100)}, tmp_path / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    shard = tmp_path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model-2\.safetensors is damaged"):
        read_tensors(find_weights(str(tmp_path), FULL_FILES))
    index.write_text(json.dumps({"weight_map": {**weight_map, "c": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="must lie beside its index"):
        find_weights(str(tmp_path), FULL_FILES)


def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no dictionary of tensors"):
        read_tensors([tmp_path / "pytorch_model.bin"])


def test_too_little_room_is_told_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    with pytest.raises(UserError, match=r"0\.00 GiB free, and the result needs 0\.06 GiB"):
        with writing.output_folder(tmp_path / "out") as folder:
            writing.write_weights(folder, lazy(a=torch.zeros(10)), torch.float32)
    assert not list(tmp_path.iterdir())


WRITE = """
import resource, sys, torch
from llava_sp.convert import writing
from llava_sp.convert.tensors import LazyTensor
from llava_sp.utils.errors import command_line
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
@command_line
def main():
    with writing.output_folder(sys.argv[1]) as folder:
        writing.write_weights(folder, {"a": LazyTensor.of(torch.zeros(2**20), "a")}, torch.float32)
main()
"""


def test_a_file_that_cannot_grow_leaves_one_sentence_and_nothing_else(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: The disk of" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_filled_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="in use"):
        with writing.output_folder(tmp_path / "out") as folder:
            (folder / "ours").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]
