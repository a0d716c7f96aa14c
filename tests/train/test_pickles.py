"""No pickle of a checkpoint is read that could run code, and reading costs no memory."""

import io
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from llava_sp.train.pickles import check_pickles, load
from llava_sp.utils.errors import UserError
from tests.reliability.bombs import watch_memory

FILES = (
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth"),
    *("training_args.bin", "pytorch_model.bin", "adapter_model.bin", "custom_checkpoint_0.pkl", "state.PT"),
    *("global_step5/mp_rank_00_model_states.pt", "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"),
    *("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step5/zero/weight/fp32.pt"),
    *("global_step5/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "pytorch_model_fsdp_0/.metadata"),
)


class Malicious:
    """Unpickling makes a folder.

    Args:
        canary: The folder.
    """

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def saved(content: Any, *, zipped: bool = True) -> bytes:
    """What `torch.save` writes, also in its format of before PyTorch 1.6."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What Trainer and DeepSpeed write of a run."""
    folder = tmp_path / "checkpoint-5"
    (folder / "global_step5").mkdir(parents=True)
    (folder / "latest").write_text("global_step5")
    tensor = torch.ones(3, dtype=torch.bfloat16)
    torch.save({"lr_lambdas": [{}, None], "_last_lr": [1e-3]}, folder / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states, folder / "rng_state.pth")
    torch.save({"module": {"weight": tensor}, "shapes": tensor.shape}, folder / "global_step5" / "mp_rank_00.pt")
    zero = {"loss_scaler": LossScaler(1), "stage": ZeroStageEnum.gradients, "at": fragment_address(numel=3, start=4)}
    torch.save(zero, folder / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


def test_what_trainer_and_deepspeed_write_is_read_as_it_is(checkpoint: Path) -> None:
    check_pickles(checkpoint)
    found = load(checkpoint / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert found["at"] == fragment_address(numel=3, start=4)
    assert found["stage"] is ZeroStageEnum.gradients
    assert found["loss_scaler"].cur_scale == 1
    state = load(checkpoint / "rng_state.pth")["numpy"]
    assert np.array_equal(state[1], np.random.get_state()[1])


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_code_is_named_and_never_unpickled(checkpoint: Path, tmp_path: Path, name: str) -> None:
    canary, file = tmp_path / "canary", checkpoint / name
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"weight": torch.ones(2), "more": [Malicious(canary)]}
    for malicious in (saved(content), saved(content, zipped=False), pickle.dumps(content), pickle.dumps(content, 0)):
        file.write_bytes(malicious)
        with pytest.raises(UserError, match=f"{name} is not read"):
            check_pickles(checkpoint)
    file.write_bytes(saved(content))
    with pytest.raises(UserError, match=r"it names posix\.mkdir\. Give"):
        check_pickles(checkpoint)
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists(), "the file is harmless, and this test shows nothing"


@pytest.mark.parametrize("function", [eval, getattr, pickle.loads, torch.hub.load, fragment_address.__init__])
def test_a_function_is_named(checkpoint: Path, function: Any) -> None:
    torch.save({"call": function}, checkpoint / "scheduler.pt")
    with pytest.raises(UserError, match=r"scheduler\.pt is not read.* it names "):
        check_pickles(checkpoint)


def test_a_program_of_torchscript_is_refused(checkpoint: Path) -> None:
    with pytest.warns():
        torch.jit.script(torch.nn.Linear(2, 2)).save(checkpoint / "scheduler.pt")
    with pytest.raises(UserError, match=r"scheduler\.pt is not read"):
        check_pickles(checkpoint)


def test_a_damaged_file_is_refused(checkpoint: Path) -> None:
    whole = (checkpoint / "rng_state.pth").read_bytes()
    for damaged in (b"", whole[:100], whole[:-100], whole.replace(b"MT19937", b"MT1993\xff")):
        (checkpoint / "rng_state.pth").write_bytes(damaged)
        with pytest.raises(UserError, match=r"rng_state\.pth is not read"):
            check_pickles(checkpoint)


@pytest.mark.parametrize("tag", ["..", "/", "global_step5/../../other", "gone", "", "scheduler.pt"])
def test_deepspeed_is_not_led_out_of_the_checkpoint(checkpoint: Path, tag: str) -> None:
    (checkpoint / "latest").write_text(tag)
    with pytest.raises(UserError, match=r"latest names .* no folder beside it"):
        check_pickles(checkpoint)


def test_a_folder_that_lies_elsewhere_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.move(checkpoint / "global_step5", tmp_path / "elsewhere")
    (checkpoint / "global_step5").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="global_step5 is a link"):
        check_pickles(checkpoint)


def test_a_linked_file_is_read_where_it_is(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "scheduler.pt").rename(tmp_path / "scheduler")
    (checkpoint / "scheduler.pt").symlink_to(tmp_path / "scheduler")
    check_pickles(checkpoint)
    torch.save(Malicious(tmp_path / "canary"), tmp_path / "scheduler")
    with pytest.raises(UserError, match=r"scheduler\.pt is not read"):
        check_pickles(checkpoint)


def test_tensors_are_not_read(checkpoint: Path) -> None:
    size = 2**31
    with torch.serialization.skip_data():
        torch.save({"flat": torch.empty(size, dtype=torch.uint8)}, checkpoint / "optimizer.pt")
    assert (checkpoint / "optimizer.pt").stat().st_size > size
    growth = watch_memory()
    check_pickles(checkpoint)
    assert growth() < 64  # MiB
