"""Every subcommand from its flags to its report."""

import sys
from pathlib import Path

import pytest

from llava_sp.convert import __main__ as command
from llava_sp.model import loading, trainable
from tests.convert.llava_hf import write_llava_hf


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; returns what it printed."""
    monkeypatch.setattr(command, "setup_logging", lambda: None)
    monkeypatch.setattr(command.transformers.logging, "set_verbosity_error", lambda: None)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def adapter(tiny_parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})
    loading.save(trainable.add_lora(model, rank=4, alpha=8, dropout=0.0), processor, folder, stage="finetune_lora")
    return folder


@pytest.mark.parametrize(
    "flags",
    [["merge-lora"], ["to-official", "--tower-by-name"], ["to-hub", "--license", "mit"]],
    ids=lambda flags: flags[0],
)
def test_what_starts_from_our_checkpoints(flags, run, adapter, tmp_path):
    printed = run(*flags, "--checkpoint", adapter, "--output", tmp_path / "out", "--dtype", "bfloat16", "--verify")
    assert f"wrote {tmp_path / 'out'}" in printed
    assert "logits against the source: largest relative error" in printed
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_warm_start(run, tiny_parts, tmp_path):
    source = write_llava_hf(tiny_parts, tmp_path / "source")
    printed = run("llava", "--checkpoint", source, "--output", tmp_path / "out", "--variant", "pooling")
    assert "imported a llava-hf checkpoint" in printed
    assert "newly initialised: spatial.sfe.operators.0.weight, " in printed
    assert "not compared; see --verify" in printed


def test_errors_are_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("merge-lora", "--checkpoint", tmp_path, "--output", tmp_path / "out")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()
