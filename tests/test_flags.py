"""Flags of the commands that answer questions: how the model is held, and what it stands on."""

import argparse
from pathlib import Path

import pytest
import torch

from llava_sp import flags
from llava_sp.model import loading, trainable
from llava_sp.utils.errors import UserError
from tests.model.test_loading import build


@pytest.fixture(scope="module")
def adapter(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = build(tiny_parts)
    folder = tmp_path_factory.mktemp("adapter")
    loading.save(trainable.add_lora(model, rank=2, alpha=4, dropout=0.0), processor, folder, stage="finetune_lora")
    return folder


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_model_flags(parser)
    options = flags.parse_flags(parser, ["--device", "cpu", *argv])
    flags.check_model_flags(options)
    return options


@pytest.mark.parametrize(("flag", "kind"), [("--load-4bit", "Linear4bit"), ("--load_8bit", "Linear8bitLt")])
def test_llavas_flags_quantise(flag: str, kind: str, adapter: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, *_ = flags.load_model(parse("--model-path", str(adapter), flag, "--dtype", "bfloat16"))
    assert kind in {type(module).__name__ for module in model.modules()}
    assert model.dtype == torch.bfloat16


def test_a_missing_bitsandbytes_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[bitsandbytes\]'"):
        parse("--model-path", "nowhere", "--load-4bit")


@pytest.mark.parametrize(("device", "taken"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_rank_takes_a_gpu_of_its_own(device: str, taken: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    options, load = parse("--model-path", str(adapter), "--device", device), flags.load
    devices = []
    monkeypatch.setattr(flags, "load", lambda *given, **named: devices.append(given[3]) or load(adapter))
    flags.load_model(options)
    assert devices == [taken]


def test_another_base_is_taken_where_that_is_allowed(
    adapter: Path, tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    other, processor = build(tiny_parts)
    for weight in other.model.language_model.parameters():
        weight.data *= 1.5
    loading.save(other, processor, tmp_path, stage="finetune")
    given = ["--model-path", str(adapter), "--model-base", str(tmp_path)]
    with pytest.raises(UserError, match=f"another LLM than that of {tmp_path}"):
        flags.load_model(parse(*given))
    flags.load_model(parse(*given, "--allow-other-base"))
