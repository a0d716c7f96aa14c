"""Benchmarks while training: scored and logged as by the suite, and nothing of the training is changed by them."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava_sp.data.conversation import get_template
from llava_sp.eval.benchmarks import get_benchmark
from llava_sp.eval.inference import generate_answers
from llava_sp.model.trainable import plain_model
from llava_sp.train import inputs
from llava_sp.train.benchmarks import BenchmarkCallback, choose_benchmarks, evaluation_steps
from llava_sp.train.command_line import collect, complete
from llava_sp.utils.errors import UserError
from tests.train.tools import build_model, make_trainer, text_sample

Parts = tuple[Path, Path]
LORA = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.3}


def make_benchmark(data_root: Path) -> Path:
    """Writes the tiny world's benchmark with four questions about four images; returns the folder above it."""
    folder = data_root / "tiny"
    (folder / "images").mkdir(parents=True)
    questions, annotations = [], []
    for number, (task, text) in enumerate([("reading", "Which digit?"), ("position", "Where is it on the left?")] * 2):
        Image.new("RGB", (50, 40), (90 * number, 40, 200)).save(folder / "images" / f"{number}.png")
        questions.append({"question_id": number, "image": f"{number}.png", "text": text})
        annotations.append({"question_id": number, "task": task, "form": task, "answer": "two"})
    for name, rows in (("questions", questions), ("annotations", annotations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data_root


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return make_benchmark(tmp_path / "eval")


def train(parts: Parts, folder: Path, data_root: Path | None, **arguments: Any) -> Any:
    """Trains a LoRA for three steps, on two samples each, with or without benchmarks; returns the trainer."""
    model, processor = build_model(parts, **LORA)
    processor.conversation_template = "v1"
    if data_root is not None:
        arguments |= {"eval_benchmarks": "tiny", "eval_data_root": str(data_root), "eval_benchmark_steps": 2}
    samples = [text_sample(f"s{seed}", 9, 4, seed=seed) for seed in range(2)]
    trainer = make_trainer(model, processor, samples, folder, max_steps=3, seed=3, **arguments)
    if data_root is not None:
        trainer.add_callback(BenchmarkCallback(trainer))
    trainer.train()
    return trainer


def test_scores_are_logged_and_the_training_ends_with_the_same_bits(
    tiny_parts: Parts, data_root: Path, tmp_path: Path
) -> None:
    alone = train(tiny_parts, tmp_path / "alone", None)
    watched = train(tiny_parts, tmp_path / "watched", data_root)
    expected = alone.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in watched.model.state_dict().items())
    logged = [line for line in watched.state.log_history if "eval_tiny_mean" in line]
    assert [line["step"] for line in logged] == [2, 3]
    assert {"eval_tiny_mean", "eval_tiny_reading", "eval_tiny_position"} <= set(logged[0])
    losses = [line["loss"] for line in watched.state.log_history if "loss" in line]
    assert losses == [line["loss"] for line in alone.state.log_history if "loss" in line]


def test_the_scores_are_those_of_the_model_at_rest_and_its_modes_are_restored(
    tiny_parts: Parts, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train(tiny_parts, tmp_path / "run", data_root, gradient_checkpointing=True)
    [callback] = [found for found in trainer.callback_handler.callbacks if isinstance(found, BenchmarkCallback)]
    [(benchmark, questions)] = callback.questions
    model = plain_model(trainer.model).train()
    before = (model.config.use_cache, model.config.text_config.use_cache, torch.random.get_rng_state())
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    answers = callback._answer(benchmark, questions)
    hook.remove()
    assert model.training
    assert before[:2] == (model.config.use_cache, model.config.text_config.use_cache)
    assert torch.equal(before[2], torch.random.get_rng_state())
    assert set(lengths[1:]) == {1}  # with a cache, one token a step
    singly = generate_answers(
        model.eval(),
        trainer.processor,
        questions,
        image_folder=data_root / "tiny" / "images",
        template=get_template("v1"),
        settings=benchmark.settings,
    )
    assert {answer.question_id: answer.text for answer in answers} == {question.id: text for question, text in singly}


def test_what_cannot_be_answered_is_counted(tiny_parts: Parts, data_root: Path, tmp_path: Path) -> None:
    (data_root / "tiny" / "images" / "0.png").write_bytes(b"no image")
    trainer = train(tiny_parts, tmp_path / "run", data_root)
    assert [line["eval_tiny_missing"] for line in trainer.state.log_history if "eval_tiny_mean" in line] == [1, 1]


def test_a_benchmark_without_any_answer_does_not_stop_the_training(
    tiny_parts: Parts, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("llava_sp"), "propagate", True)
    for image in (data_root / "tiny" / "images").iterdir():
        image.write_bytes(b"no image")
    trainer = train(tiny_parts, tmp_path / "run", data_root)
    assert trainer.state.global_step == 3
    assert "No score for tiny: The answers are not to" in caplog.text


@pytest.mark.parametrize(
    ("given", "eval_strategy", "save_strategy", "expected"),
    [
        (7, "steps", "steps", 7),
        (0.25, "no", "no", 13),
        (None, "steps", "steps", 5),
        (None, "no", "steps", 20),
        (None, "no", "no", 50),
    ],
)
def test_when_it_is_time(given: float | None, eval_strategy: str, save_strategy: str, expected: int) -> None:
    args = SimpleNamespace(eval_benchmark_steps=given, eval_strategy=eval_strategy, save_strategy=save_strategy)
    assert evaluation_steps(args, SimpleNamespace(max_steps=50, eval_steps=5, save_steps=20)) == expected


def test_only_what_is_scored_here_is_evaluated() -> None:
    assert choose_benchmarks("tiny,pope") == [get_benchmark("tiny"), get_benchmark("pope")]
    with pytest.raises(UserError, match="--eval_benchmarks vqav2: it is scored by a server"):
        choose_benchmarks("tiny,vqav2")
    with pytest.raises(UserError, match="There is no benchmark 'nope'"):
        choose_benchmarks("nope")


def test_missing_data_are_told_before_the_training(tmp_path: Path) -> None:
    given = {"data_path": "d.json", "init_from": "c", "eval_benchmarks": "tiny", "eval_data_root": str(tmp_path)}
    with pytest.raises(UserError, match=r"benchmark tiny, .*tiny/questions\.jsonl \(the questions\): get it from"):
        inputs.check_inputs(given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--deepspeed", "configs/zero3.json"], r"ZeRO-3 \(configs/zero3\.json\): a rank has no whole model"),
        (["--eval_benchmark_steps", "-1"], "--eval_benchmark_steps must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    given = collect(["--use_cpu", "--output_dir", str(tmp_path), "--eval_benchmarks", "tiny", *flags])
    with pytest.raises(UserError, match=message):
        complete(given, ranks=1)
