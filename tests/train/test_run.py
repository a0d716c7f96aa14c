"""Whole runs in one process: resumption, the output folder, held-out data, the dry run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_sp.eval.provenance import checkpoint_digest
from llava_sp.train import launch
from llava_sp.train.events import read
from llava_sp.train.run import train
from llava_sp.utils.errors import UserError

Parts = tuple[Path, Path]


@pytest.fixture
def flags(tiny_parts: Parts, short_run: list[str]) -> list[str]:
    """A short stage 1 run of two epochs of three steps, an output folder yet to be given."""
    llm, tower = map(str, tiny_parts)
    parts = ["--model_name_or_path", llm, "--vision_tower", tower, "--sfe_channels", "8"]
    return [*parts, *short_run, "--version", "plain", "--tune_mm_mlp_adapter"]


def test_every_cut_of_a_run_ends_with_the_same_bits(flags: list[str], tmp_path: Path) -> None:
    def result(folder: Path) -> tuple[dict, dict]:
        state = torch.load(folder / "checkpoint-6" / "optimizer.pt")["state"]
        moments = {f"{key}.{name}": value for key, entry in state.items() for name, value in entry.items()}
        return load_file(folder / "projector.safetensors"), moments

    train([*flags, "--output_dir", str(tmp_path / "whole")], ranks=1)
    expected = result(tmp_path / "whole")
    for cut in (1, 3, 5):
        output = ["--output_dir", str(tmp_path / f"cut{cut}")]
        train([*flags, *output, "--stop_after_steps", str(cut)], ranks=1)
        train([*flags, *output], ranks=1)
        for found, wanted in zip(result(tmp_path / f"cut{cut}"), expected, strict=True):
            assert set(found) == set(wanted)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_run_may_be_continued_from_an_earlier_checkpoint(flags: list[str], tmp_path: Path) -> None:
    output = ["--output_dir", str(tmp_path / "out")]
    train([*flags, *output, "--stop_after_steps", "4"], ranks=1)
    train([*flags, *output, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2")], ranks=1)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_may_have_any_name(flags: list[str], tmp_path: Path) -> None:
    output = [*flags, "--output_dir", str(tmp_path / "out")]
    train([*output, "--stop_after_steps", "2"], ranks=1)
    (tmp_path / "out" / "checkpoint-2").rename(tmp_path / "out" / "mine")
    train([*output, "--resume_from_checkpoint", str(tmp_path / "out" / "mine")], ranks=1)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 6


def test_the_same_command_goes_on_though_it_names_a_checkpoint(flags: list[str], tmp_path: Path) -> None:
    output = [*flags, "--output_dir", str(tmp_path / "out"), "--save_total_limit", "1"]
    train([*output, "--stop_after_steps", "1"], ranks=1)
    again = [*output, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")]
    train([*again, "--stop_after_steps", "3"], ranks=1)
    train(again, ranks=1)
    resumed = [event["checkpoint"] for event in read(tmp_path / "out") if event["event"] == "resumed"]
    assert resumed == ["checkpoint-1", "checkpoint-3"]


def test_a_run_whose_last_step_is_saved_already_tells_the_loss_of_all(flags: list[str], tmp_path: Path) -> None:
    output = [*flags, "--output_dir", str(tmp_path / "out")]
    train(output, ranks=1)
    losses = [json.loads((tmp_path / "out" / "metrics.json").read_text())["train_loss"]]
    (tmp_path / "out" / "metrics.json").unlink()
    train(output, ranks=1)
    losses.append(json.loads((tmp_path / "out" / "metrics.json").read_text())["train_loss"])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    expected = sum(line["loss"] for line in history if "loss" in line) / 6
    assert losses == pytest.approx([expected, expected])


def test_a_run_that_is_complete_is_left_as_it_is(flags: list[str], tmp_path: Path) -> None:
    """What has been answered with its result can be continued after the same command came again."""
    output = [*flags, "--output_dir", str(tmp_path / "out")]
    train(output, ranks=1)
    digest, lock = checkpoint_digest(str(tmp_path / "out")), tmp_path / "out" / ".lock"
    lock.write_text("process of another number")
    train(output, ranks=1)
    assert lock.read_text() != "process of another number"
    assert checkpoint_digest(str(tmp_path / "out")) == digest
    (tmp_path / "out" / "config.json").write_text("{}")
    assert checkpoint_digest(str(tmp_path / "out")) != digest


def test_a_run_shorter_than_its_logging_interval_has_a_loss_too(flags: list[str], tmp_path: Path) -> None:
    train([*flags, "--output_dir", str(tmp_path / "out"), "--logging_steps", "100"], ranks=1)
    assert 0 < json.loads((tmp_path / "out" / "metrics.json").read_text())["train_loss"] < 20


def test_another_runs_folder_is_refused(flags: list[str], tmp_path: Path) -> None:
    output = ["--output_dir", str(tmp_path / "out")]
    train([*flags, *output, "--stop_after_steps", "1"], ranks=1)
    with pytest.raises(UserError, match=r"learning_rate is 0\.01 there and 0\.5 here"):
        train([*flags, *output, "--learning_rate", "0.5"], ranks=1)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"image_folder is .* there and '.*elsewhere' here"):
        train([*flags, *output, "--image_folder", str(tmp_path / "elsewhere")], ranks=1)
    with pytest.raises(UserError, match="lr_scheduler_kwargs is"):
        train([*flags, *output, "--lr_scheduler_kwargs", '{"num_cycles": 2}'], ranks=1)
    (tmp_path / "data.json").write_text((tmp_path / "data.json").read_text().replace("number", "figure "))
    with pytest.raises(UserError, match="holds another run's files: data is"):
        train([*flags, *output], ranks=1)


def test_held_out_loss_is_logged(flags: list[str], tmp_path: Path) -> None:
    data = str(tmp_path / "data.json")
    train([*flags, "--output_dir", str(tmp_path / "out"), "--eval_data_path", data, "--eval_steps", "3"], ranks=1)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = {line["step"]: line["eval_loss"] for line in history if "eval_loss" in line}
    assert set(losses) == {3, 6}
    assert sum("eval_loss" in line for line in history) == 2  # the last step is not evaluated twice
    assert losses[6] < losses[3]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["eval_loss"] == pytest.approx(losses[6])


def test_tensorboard_gets_the_log_where_it_is_asked_for(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train([*flags, "--output_dir", str(tmp_path / "out"), "--report_to", "tensorboard"], ranks=1)
    assert list((tmp_path / "board").glob("events*"))


@pytest.mark.parametrize("extent", ["sample", "full"])
def test_bad_data_is_told_before_the_first_step(flags: list[str], tmp_path: Path, extent: str) -> None:
    (tmp_path / "3.png").write_text("no picture")
    with pytest.raises(UserError, match=r"(?s)cannot be trained on.*cannot be decoded.*record3"):
        train([*flags, "--output_dir", str(tmp_path / "out"), "--check_data", extent], ranks=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "run.json"]


def test_bad_held_out_data_is_told_before_the_first_step(flags: list[str], tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.json"
    held_out.write_text((tmp_path / "data.json").read_text().replace("3.png", "gone.png"))
    with pytest.raises(UserError, match=r"(?s)held_out\.json cannot be trained on.*gone\.png"):
        train([*flags, "--output_dir", str(tmp_path / "out"), "--eval_data_path", str(held_out)], ranks=1)
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_a_broken_image_met_in_training_is_named(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("no picture")
    off = ["--check_data", "off", "--max_bad_share", "0"]
    with pytest.raises(UserError, match=r"record3.*3\.png") as error:
        train([*flags, "--output_dir", str(tmp_path / "out"), *off], ranks=1)
    assert "\n" not in str(error.value)


def test_out_of_memory_names_what_needs_less(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_gpu(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("llava_sp.train.trainer.LlavaSPTrainer.training_step", fill_the_gpu)
    with pytest.raises(UserError, match=r"The GPU is out of memory.* GiB.*--per_device_train_batch_size 1"):
        train([*flags, "--output_dir", str(tmp_path / "out")], ranks=1)


def test_out_of_memory_in_an_evaluation_names_its_batch(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_gpu(*arguments: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("llava_sp.train.trainer.LlavaSPTrainer.prediction_step", fill_the_gpu)
    held_out = ["--eval_data_path", str(tmp_path / "data.json"), "--eval_strategy", "epoch"]
    with pytest.raises(UserError, match=r"in an evaluation by 2 .* --per_device_eval_batch_size 1; the last check"):
        train([*flags, *held_out, "--output_dir", str(tmp_path / "out")], ranks=1)


def test_the_dry_run_shows_the_plan_and_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dry = [*flags, "--output_dir", str(tmp_path / "out"), "--dry_run", "--global_batch_size", "32"]
    train(dry, ranks=4)
    plain = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for part in (
        "learning_rate: 0.01",
        "32 samples per step = 2 per device x 4 accumulation x 4 ranks",
        "spatial.output.weight",
        "optimizer states",
        "estimate",
        "<image>x150[.",  # one of the captions' tokens is in brackets: the loss is on it
    ):
        assert part in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    train(dry, ranks=4)
    assert "\033[36m<image>x150\033[0m\033[1;32m" in capsys.readouterr().out


def test_the_dry_run_checks_the_data_where_it_is_asked_to(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("no picture")
    dry = [*flags, "--output_dir", str(tmp_path / "out"), "--dry_run"]
    train(dry, ranks=1)
    with pytest.raises(UserError, match=r"(?s)cannot be trained on.*record3"):
        train([*dry, "--check_data", "full"], ranks=1)


def test_the_dry_run_of_eight_gpus_is_one_process_that_needs_none(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 0))
    on_gpus = [flag for flag in flags if flag != "--use_cpu"]
    monkeypatch.setattr("sys.argv", ["launch", *on_gpus, "--output_dir", str(tmp_path / "out"), "--dry_run"])
    launch.main()
    shown = capsys.readouterr().out
    assert "16 samples per step = 2 per device x 1 accumulation x 8 ranks" in shown
    assert "use_cpu" not in shown


def test_a_logger_that_is_not_installed_is_named(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"--report_to wandb.*pip install"):
        train([*flags, "--output_dir", str(tmp_path / "out"), "--report_to", "wandb"], ranks=1)
