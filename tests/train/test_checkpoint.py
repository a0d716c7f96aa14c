"""An output folder belongs to one run, and a run continues only from a checkpoint with all its state."""

import json
from pathlib import Path

import pytest

from llava_sp.train import checkpoint
from llava_sp.train.arguments import DataArguments, ModelArguments, TrainArguments
from llava_sp.train.batch_plan import BatchPlan
from llava_sp.train.command_line import RunArguments
from llava_sp.utils.errors import UserError

IDENTITY = {"stage": "pretrain", "learning_rate": 1e-3, "sfe_sides": [2, 4]}


def make_checkpoint(folder: Path, step: int, *, ranks: int = 1, deepspeed: bool = False) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    names = ["trainer_state.json", "llava_sp.json", "scheduler.pt", "latest" if deepspeed else "optimizer.pt"]
    names += [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    for name in names:
        (path / name).touch()
    return path


def test_a_new_folder_becomes_the_runs_own(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    checkpoint.claim_folder(folder, IDENTITY)
    checkpoint.claim_folder(folder, json.loads(json.dumps(IDENTITY)))
    assert json.loads((folder / checkpoint.RUN_NAME).read_text()) == IDENTITY


def test_another_runs_folder_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    checkpoint.claim_folder(tmp_path, IDENTITY)
    make_checkpoint(tmp_path, 1)
    with pytest.raises(UserError, match=r"learning_rate is 0\.001 there and 0\.002 here"):
        checkpoint.claim_folder(tmp_path, {**IDENTITY, "learning_rate": 2e-3})


def test_a_run_that_failed_at_its_start_may_be_mended(tmp_path: Path) -> None:
    checkpoint.claim_folder(tmp_path, {**IDENTITY, "variant": "croping"})
    mended = {**IDENTITY, "variant": "cropping"}
    checkpoint.claim_folder(tmp_path, mended)
    assert json.loads((tmp_path / checkpoint.RUN_NAME).read_text()) == mended


def test_the_zero_stage_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    training = TrainArguments(output_dir=str(tmp_path), use_cpu=True)
    run = RunArguments(ModelArguments(), DataArguments(data_path=__file__), training, BatchPlan(1, 1, 1))
    without = checkpoint.run_identity(run)
    training.deepspeed = str(Path(__file__).parents[2] / "configs" / "zero2.json")
    sharing = checkpoint.run_identity(run)
    assert {name: (without[name], sharing[name]) for name in without if without[name] != sharing[name]} == {
        "zero_stage": (0, 2)
    }


def test_a_folder_with_a_model_from_elsewhere_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("days of work")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoint.claim_folder(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_folder_may_hold_the_log_of_this_very_command(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    checkpoint.claim_folder(tmp_path, IDENTITY)
    assert (tmp_path / checkpoint.RUN_NAME).is_file()


def test_the_newest_checkpoint_is_continued(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        make_checkpoint(tmp_path, step)
    for wanted in (None, "auto", "True"):
        found = checkpoint.find_resume(wanted, tmp_path, ranks=1, deepspeed=False)
        assert found == tmp_path / "checkpoint-10"


def test_without_a_checkpoint_the_run_starts_fresh(tmp_path: Path) -> None:
    assert checkpoint.find_resume("auto", tmp_path, ranks=1, deepspeed=False) is None


def test_a_checkpoint_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        checkpoint.find_resume(str(tmp_path / "nowhere"), tmp_path, ranks=1, deepspeed=False)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_missing_state_is_named(tmp_path: Path, name: str) -> None:
    (make_checkpoint(tmp_path, 5) / name).unlink()
    with pytest.raises(UserError, match=f"checkpoint-5 lacks {name}"):
        checkpoint.find_resume(None, tmp_path, ranks=1, deepspeed=False)


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, ranks=2, deepspeed=True)
    assert checkpoint.find_resume(None, tmp_path, ranks=2, deepspeed=True)
    with pytest.raises(UserError, match=r"written by 2 rank\(s\) and this run has 4"):
        checkpoint.find_resume(None, tmp_path, ranks=4, deepspeed=True)


def test_a_checkpoint_without_deepspeeds_state_is_refused_under_deepspeed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    with pytest.raises(UserError, match="lacks latest"):
        checkpoint.find_resume(None, tmp_path, ranks=1, deepspeed=True)


def test_surplus_checkpoints_go_oldest_first(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        make_checkpoint(tmp_path, step)
    checkpoint.remove_surplus(tmp_path, None)
    assert len(checkpoint.checkpoints(tmp_path)) == 3
    checkpoint.remove_surplus(tmp_path, 2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_a_half_written_checkpoint_is_never_continued_and_is_removed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / checkpoint.STAGING, 7)
    make_checkpoint(tmp_path / checkpoint.DRY_SAVE, 0)
    assert checkpoint.find_resume(None, tmp_path, ranks=1, deepspeed=False) is None
    checkpoint.remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())
