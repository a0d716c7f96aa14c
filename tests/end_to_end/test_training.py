"""Both stages on two ranks under ZeRO-2, as a user starts them: exact resumption, self-contained checkpoints, no hang.

The runs are real: torchrun, DeepSpeed, gloo. They share one folder and are started once for all tests.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_sp.model import loading
from llava_sp.model.card import Card
from tests.reliability.runs import ROOT, WORDS, bits, steps_of

SHARED = """
--use_cpu --deepspeed configs/zero2.json --gradient_checkpointing --per_device_train_batch_size 2 --global_batch_size 8
--num_train_epochs 2 --logging_steps 1 --save_steps 1 --disable_tqdm True --warmup_ratio 0.1 --lr_scheduler_type cosine
""".split()


@dataclass
class World:
    """The folders of the test's world."""

    root: Path
    llm: Path
    tower: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def launch(self, *flags: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        """Runs a training on so many ranks, as the scripts do."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "llava_sp.train.launch", "--nproc_per_node", str(ranks), *SHARED, *flags]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=3600
        )

    @property
    def watched(self) -> list[str]:
        """Flags that have a benchmark answered while training."""
        return ["--eval_benchmarks", "tiny", "--eval_data_root", str(self / "eval"), "--eval_benchmark_steps", "2"]

    def pretrain(self, output: str, *flags: str) -> subprocess.CompletedProcess[str]:
        parts = ["--model_name_or_path", str(self.llm), "--vision_tower", str(self.tower), "--sfe_channels", "8"]
        data = ["--data_path", str(self / "captions.json"), "--image_folder", str(self / "images")]
        stage = ["--version", "plain", "--tune_mm_mlp_adapter", "True", "--learning_rate", "1e-2"]
        return self.launch(*parts, *data, *stage, "--output_dir", str(self / output), *flags)

    def tune(self, output: str, *flags: str, data: str = "mix.json") -> subprocess.CompletedProcess[str]:
        start = ["--init_from", str(self / "pretrain"), "--version", "v1", "--image_aspect_ratio", "pad"]
        files = ["--data_path", str(self / data), "--image_folder", str(self / "images")]
        stage = ["--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0.05", "--learning_rate", "1e-2"]
        rates = ["--mm_projector_lr", "1e-3"]
        return self.launch(*start, *files, *stage, *rates, "--output_dir", str(self / output), *flags)


def make_data(world: World) -> None:
    """Captions with an image each, and a mix of questions of which every third has none."""
    generator = random.Random(0)  # noqa: S311
    (world / "images").mkdir()
    captions, mix = [], []
    for number in range(20):
        colour = tuple(generator.randrange(256) for _ in range(3))
        Image.new("RGB", (60, 40), colour).save(world / "images" / f"{number}.png")
        text = " ".join(generator.choices(WORDS, k=generator.randrange(2, 12)))
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": text}]
        captions.append({"id": f"caption{number}", "image": f"{number}.png", "conversations": turns})
        question = {**captions[-1], "id": f"question{number}"}
        if number % 3 == 0:
            del question["image"]
            question["conversations"] = [{"from": "human", "value": "What is it?"}, turns[1]]
        mix.append(question)
    tiny = world / "eval" / "tiny"
    tiny.mkdir(parents=True)
    (tiny / "images").symlink_to(world / "images")
    asked = [{"question_id": n, "image": f"{n}.png", "text": "What is it?", "task": "reading"} for n in range(5)]
    for name in ("questions", "annotations"):
        (tiny / f"{name}.jsonl").write_text("".join(json.dumps({**row, "answer": "red"}) + "\n" for row in asked))
    (world / "captions.json").write_text(json.dumps(captions))
    (world / "mix.json").write_text(json.dumps(mix))
    broken = [{**record, "image": "gone.png"} if record["id"] == "question17" else record for record in mix]
    (world / "broken.json").write_text(json.dumps(broken))


@pytest.fixture(scope="module")
def world(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, and both stages run through without a break."""
    world = World(tmp_path_factory.mktemp("world"), *tiny_parts)
    make_data(world)
    assert_ok(world.pretrain("pretrain"))
    assert_ok(world.tune("lora", *world.watched))
    return world


def assert_ok(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that hold a benchmark's scores."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "eval_tiny_mean" in line]


def test_a_run_that_was_interrupted_ends_with_the_same_bits(world: World) -> None:
    """Three steps an epoch, cut after the fourth: in the second epoch, with dropout and mixed modality."""
    again = world / "interrupted"
    first = world.tune(again.name, *world.watched, "--stop_after_steps", "4")
    assert_ok(first)
    assert "stopped after step 4 of 6" in first.stdout
    assert not (again / "metrics.json").exists()
    second = world.tune(again.name, *world.watched)
    assert_ok(second)
    assert "checkpoint-4" in second.stdout
    for folder in ("", "checkpoint-6"):
        assert bits(again / folder) == bits(world / "lora" / folder)
    assert sum("optim_states" in name for name in bits(again / "checkpoint-6")) == 2  # of both ranks
    assert steps_of(again) == steps_of(world / "lora")
    assert [line["step"] for line in scores_of(world / "lora")] == [2, 4, 6]
    assert scores_of(again) == scores_of(world / "lora")


def test_every_checkpoint_is_loaded_by_its_path_alone_and_says_what_it_is(world: World) -> None:
    for stage, name in (("pretrain", "pretrain"), ("finetune_lora", "lora")):
        for step in range(1, 7):
            folder = world / name / f"checkpoint-{step}"
            model, processor = loading.load(folder)
            card = Card.read(folder / "llava_sp.json")
            assert card.stage == stage
            assert card.details["step"] == step
            assert card.parts["llm"] == str(world.llm)
            assert processor.conversation_template == ("plain" if stage == "pretrain" else "v1")
            assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_training_moved_what_it_trains_and_nothing_else(world: World) -> None:
    start, _ = loading.load(world / "pretrain")
    tuned, _ = loading.load(world / "lora")
    before = dict(start.named_parameters())
    lora_sites = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for name, parameter in tuned.named_parameters():
        trained = "multi_modal_projector" in name
        trained |= "language_model" in name and name.split(".")[-2] in lora_sites
        assert torch.equal(parameter, before[name]) != trained, name


def test_the_log_holds_what_a_plot_needs(world: World) -> None:
    lines = steps_of(world / "lora")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["learning_rate/lora"] == pytest.approx(10 * line["learning_rate/projector"])
        assert line["supervised_tokens_per_step"] > 0
        assert line["grad_norm"] > 0
    metrics = json.loads((world / "lora" / "metrics.json").read_text())
    assert metrics["steps"] == 6


def test_a_run_that_is_complete_is_left_alone(world: World) -> None:
    before = (world / "lora" / "metrics.json").stat().st_mtime_ns
    result = world.tune("lora")
    assert_ok(result)
    assert "nothing is left to do" in result.stdout
    assert (world / "lora" / "metrics.json").stat().st_mtime_ns == before


def test_another_runs_folder_is_refused_by_one_line(world: World) -> None:
    result = world.tune("lora", "--lora_alpha", "64")
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1
    assert "lora_alpha is 16 there and 64 here" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_diverging_run_stops_on_all_ranks_and_names_the_samples(world: World) -> None:
    result = world.tune("diverging", "--learning_rate", "1e30", "--mm_projector_lr", "1e30", "--save_strategy", "no")
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1
    assert "not finite in step" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (world / "diverging" / "llava_sp.json").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_deepspeed_before_the_update(world: World, precision: str) -> None:
    flags = [
        *("--model_name_or_path", str(world.llm), "--vision_tower", str(world.tower), "--sfe_channels", "8"),
        *("--data_path", str(world / "captions.json"), "--image_folder", str(world / "images"), "--version", "plain"),
        *("--tune_mm_mlp_adapter", *SHARED, "--output_dir", str(world / f"gradient_{precision}")),
        *("--bf16", str(precision == "bf16")),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.bad_gradient", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert "gradient's norm is not finite in step 1" in result.stdout, result.stderr[-3000:]
    assert "weights unchanged: True" in result.stdout


def test_zero_3_evaluates_where_one_rank_has_an_image_and_the_other_has_none(world: World) -> None:
    held_out = ["--eval_data_path", str(world / "mix.json"), "--per_device_eval_batch_size", "1", "--max_steps", "1"]
    losses = []
    for stage in ("zero2", "zero3"):
        assert_ok(world.tune(stage, *held_out, "--deepspeed", f"configs/{stage}.json", "--save_strategy", "no"))
        losses.append(json.loads((world / stage / "metrics.json").read_text())["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_missing_image_is_told_by_the_rank_that_meets_it(world: World) -> None:
    flags = ["--check_data", "off", "--max_bad_share", "0", "--dataloader_num_workers", "1"]
    result = world.tune("broken", *flags, data="broken.json")
    assert result.returncode == 2
    assert "question17" in result.stderr
    assert "gone.png" in result.stderr
    assert "Traceback" not in result.stderr
