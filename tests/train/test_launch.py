"""GPUs are counted, nodes find each other, and mistakes are told once, before any rank starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_sp.train import launch
from llava_sp.train.command_line import collect
from llava_sp.train.signals import SAVED_EXIT_CODE
from llava_sp.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llava_sp.train.launch", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def flags(*arguments: str) -> object:
    return launch.read_launcher_flags(list(arguments))[0]


def test_flags_of_the_launcher_and_of_the_training_are_told_apart() -> None:
    found, rest = launch.read_launcher_flags(["configs/a.yaml", "--nproc_per_node", "2", "--lora_r", "8"])
    assert found.nproc_per_node == 2
    assert rest == ["configs/a.yaml", "--lora_r", "8"]


@pytest.mark.parametrize(("gpus", "wanted", "expected"), [(8, None, 8), (8, 4, 4), (0, None, 1), (0, 2, 2)])
def test_processes_are_counted(monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int | None, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.count_processes(wanted, use_cpu=False) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--nproc_per_node 4: this machine has 2 GPUs"):
        launch.count_processes(4, use_cpu=False)
    assert launch.count_processes(4, use_cpu=True) == 4


def test_one_node_stands_alone() -> None:
    assert launch.torchrun_arguments(flags(), 8) == ["--nproc_per_node=8", "--standalone"]


def test_several_nodes_meet_by_rendezvous_or_by_address() -> None:
    by_rendezvous = launch.torchrun_arguments(flags("--nnodes", "2", "--rdzv_endpoint", "node0:29500"), 8)
    assert {"--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=node0:29500"} <= set(by_rendezvous)
    by_address = launch.torchrun_arguments(flags("--nnodes", "2", "--master_addr", "node0", "--node_rank", "1"), 8)
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=node0"} <= set(by_address)
    with pytest.raises(UserError, match="--rdzv_endpoint"):
        launch.torchrun_arguments(flags("--nnodes", "2"), 8)


def test_deepspeeds_launcher_hands_yaml_and_flags_to_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    started: list[str] = []
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("os.execvp", lambda file, argv: (started.extend(argv), sys.exit(0)))
    recipe = ["configs/train/pretrain.yaml", "--seed", "3"]
    launcher = ["--hostfile", "hosts.txt", "--nproc_per_node", "4", "--master_port", "29501"]
    monkeypatch.setattr("sys.argv", ["launch", *recipe, *launcher])
    with pytest.raises(SystemExit):
        launch.main()
    told = runner.parse_args(started[1:])
    assert (told.hostfile, told.num_gpus, told.master_port) == ("hosts.txt", 4, 29501)
    assert (told.module, told.user_script, told.user_args) == (True, "llava_sp.train", recipe)
    as_a_rank_gets_it = ["--local_rank=1", *told.user_args]
    monkeypatch.chdir(ROOT)
    assert collect(as_a_rank_gets_it) == collect(recipe)


def test_flags_that_the_hostfile_answers_are_refused() -> None:
    with pytest.raises(UserError, match="--nnodes does not go with --hostfile"):
        launch.deepspeed_arguments(flags("--hostfile", "hosts.txt", "--nnodes", "2"))


def test_what_is_missing_is_told_in_one_message_and_names_the_quickstart() -> None:
    result = run("configs/train/pretrain.yaml", "--data_path", "nowhere/blip_laion_cc_sbu_558k.json", "--use_cpu")
    assert result.returncode == 2
    for part in ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "LLaVA-Pretrain", "quickstart.sh"):
        assert part in result.stderr
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr


def test_an_impossible_batch_is_told_before_anything_is_read() -> None:
    result = run("configs/train/pretrain.yaml", "--per_device_train_batch_size", "24", "--use_cpu")
    assert result.returncode == 2
    assert "global_batch_size 256" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["pretrain", "finetune_lora", "finetune"])
def test_the_scripts_pass_flags_through(script: str) -> None:
    result = subprocess.run(
        ["bash", f"scripts/{script}.sh", "--lerning_rate", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "did you mean --learning_rate?" in result.stderr


@pytest.mark.parametrize("code", [0, 1, SAVED_EXIT_CODE])
def test_a_slurm_job_that_has_saved_goes_back_to_the_queue(tmp_path: Path, code: int) -> None:
    for name, does in {"scontrol": 'echo "$@" >>asked', "srun": f"exit {code}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "a,b", "SLURM_CPUS_PER_TASK": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    environment = {**job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / "scripts/slurm_finetune_lora.sbatch"
    assert subprocess.run(["bash", script], cwd=tmp_path, env=environment, check=False).returncode == code
    requeued = "requeue 7" in (tmp_path / "asked").read_text().splitlines()
    assert requeued == (code == SAVED_EXIT_CODE)
