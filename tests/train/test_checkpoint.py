"""An output folder belongs to one run, and a run continues only from a checkpoint with all its state."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from llava_sp.train import checkpoint, events
from llava_sp.train.arguments import DataArguments, ModelArguments, TrainArguments
from llava_sp.train.batch_plan import BatchPlan
from llava_sp.train.command_line import RunArguments
from llava_sp.train.events import EVENTS_NAME
from llava_sp.utils.errors import UserError
from llava_sp.utils.manifest import MANIFEST_NAME, seal

IDENTITY = {"stage": "pretrain", "learning_rate": 1e-3, "sfe_sides": [2, 4]}


def make_checkpoint(folder: Path, step: int, *, ranks: int = 1, deepspeed: bool = False) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    names = ["trainer_state.json", "llava_sp.json", "scheduler.pt", "latest" if deepspeed else "optimizer.pt"]
    names += [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    for name in names:
        if name.endswith((".pt", ".pth")):
            torch.save({}, path / name)
        else:
            (path / name).touch()
    if deepspeed:
        (path / f"global_step{step}").mkdir()
        (path / "latest").write_text(f"global_step{step}")
    seal(path)
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
        found = checkpoint.find_resume(wanted, tmp_path, deepspeed=False)
        assert found == tmp_path / "checkpoint-10"


def test_without_a_checkpoint_the_run_starts_fresh(tmp_path: Path) -> None:
    assert checkpoint.find_resume("auto", tmp_path, deepspeed=False) is None


def test_a_checkpoint_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        checkpoint.find_resume(str(tmp_path / "nowhere"), tmp_path, deepspeed=False)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_missing_state_is_named(tmp_path: Path, name: str) -> None:
    path = make_checkpoint(tmp_path, 5)
    (path / name).unlink()
    seal(path)
    with pytest.raises(UserError, match=f"checkpoint-5 lacks {name}"):
        checkpoint.find_resume(None, tmp_path, deepspeed=False)


def test_a_checkpoint_that_was_asked_for_is_where_the_command_begins(tmp_path: Path) -> None:
    """The same command again, as a scheduler gives it, continues from what it has saved since."""
    elsewhere, out = make_checkpoint(tmp_path / "elsewhere", 5), tmp_path / "out"
    for step in (4, 7):
        make_checkpoint(out, step)
        os.utime(out / f"checkpoint-{step}" / MANIFEST_NAME, (0, 0))

    def resume() -> Path | None:
        return checkpoint.find_resume(str(elsewhere), out, deepspeed=False)

    assert resume() == elsewhere
    events.append(out, "resumed", "", checkpoint="checkpoint-5", begun_from=str(elsewhere))
    assert resume() == elsewhere  # nothing has come of it yet
    time.sleep(0.01)
    make_checkpoint(out, 6)
    assert resume() == out / "checkpoint-6"
    shutil.rmtree(elsewhere)
    assert resume() == out / "checkpoint-6"
    shutil.rmtree(out / "checkpoint-6")
    with pytest.raises(UserError, match="there is no such folder"):
        resume()


def test_a_sealed_checkpoint_that_is_not_in_its_place_is_a_runs_own_too(tmp_path: Path) -> None:
    """A run was killed at that moment, and another one in the same folder would take it for its own."""
    checkpoint.claim_folder(tmp_path, IDENTITY)
    make_checkpoint(tmp_path / checkpoint.STAGING, 3)
    with pytest.raises(UserError, match="holds another run's files: learning_rate"):
        checkpoint.claim_folder(tmp_path, {**IDENTITY, "learning_rate": 2e-3})
    checkpoint.claim_folder(tmp_path, IDENTITY)


def test_a_checkpoint_tells_how_many_ranks_wrote_it(tmp_path: Path) -> None:
    assert checkpoint.written_by(make_checkpoint(tmp_path, 5, ranks=2, deepspeed=True)) == 2
    assert checkpoint.written_by(make_checkpoint(tmp_path, 6)) == 1


def test_a_checkpoint_without_deepspeeds_state_is_refused_under_deepspeed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    with pytest.raises(UserError, match="lacks latest"):
        checkpoint.find_resume(None, tmp_path, deepspeed=True)


@pytest.mark.parametrize(("keep", "left"), [(None, [3, 20, 100, 101]), (2, [100, 101]), (1, [101])])
def test_surplus_checkpoints_go_oldest_first(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for step in (3, 20, 100):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path / checkpoint.STAGING, 101)
    checkpoint.complete(tmp_path / checkpoint.STAGING, tmp_path, ranks=1, keep=keep)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert not (tmp_path / checkpoint.STAGING).exists()


def test_surplus_that_a_kill_has_left_goes_at_the_end(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    checkpoint.remove_surplus(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("keep", [None, 0, -1])
def test_without_a_limit_all_stay(tmp_path: Path, keep: int | None) -> None:
    for step in (1, 2):
        make_checkpoint(tmp_path, step)
    checkpoint.remove_surplus(tmp_path, keep)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_what_was_written_last_stays_though_its_number_is_lower(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 9)
    make_checkpoint(tmp_path / checkpoint.STAGING, 7)
    checkpoint.complete(tmp_path / checkpoint.STAGING, tmp_path, ranks=1, keep=1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-7"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (make_checkpoint(tmp_path, 7) / "old").touch()
    make_checkpoint(tmp_path / checkpoint.STAGING, 7)
    checkpoint.complete(tmp_path / checkpoint.STAGING, tmp_path, ranks=1, keep=1)
    assert not (tmp_path / "checkpoint-7" / "old").exists()


def test_a_checkpoint_without_the_files_of_some_rank_is_not_completed(tmp_path: Path) -> None:
    grown = make_checkpoint(tmp_path / checkpoint.STAGING, 7)
    (grown / "rng_state.pth").rename(grown / "rng_state_0.pth")
    with pytest.raises(UserError, match=r"Of 2 ranks, the files of 1 are seen .* all nodes share; there is no checkp"):
        checkpoint.complete(tmp_path / checkpoint.STAGING, tmp_path, ranks=2, keep=1)
    assert checkpoint.checkpoints(tmp_path) == []


def test_a_half_written_checkpoint_is_never_continued_and_is_removed(tmp_path: Path) -> None:
    (make_checkpoint(tmp_path / checkpoint.STAGING, 7) / MANIFEST_NAME).unlink()
    make_checkpoint(tmp_path / checkpoint.DRY_SAVE, 0)
    (tmp_path / ".saving.abc").mkdir()
    (tmp_path / ".metrics.json.abc").touch()
    assert checkpoint.find_resume(None, tmp_path, deepspeed=False) is None
    checkpoint.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EVENTS_NAME]


def test_a_checkpoint_that_was_sealed_and_not_yet_in_its_place_is_put_there(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / checkpoint.STAGING, 7)
    checkpoint.recover(tmp_path)
    assert checkpoint.find_resume(None, tmp_path, deepspeed=False) == tmp_path / "checkpoint-7"


def test_of_damaged_checkpoints_nothing_is_lost(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = make_checkpoint(tmp_path, step)
        if step > 1:
            (path / "scheduler.pt").write_text("damaged")
    (tmp_path / "checkpoint-3.damaged-1").mkdir()
    assert checkpoint.find_resume(None, tmp_path, deepspeed=False) == tmp_path / "checkpoint-1"
    for aside in ("checkpoint-3.damaged-2", "checkpoint-2.damaged-1"):
        assert (tmp_path / aside / "scheduler.pt").read_text() == "damaged"
