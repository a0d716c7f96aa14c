"""What happens within a step: how losses are averaged, what is logged, what stops a run, what is saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from llava_sp.constants import IGNORE_INDEX
from llava_sp.model import loading
from llava_sp.train.callbacks import RunCallback
from llava_sp.train.trainer import LOSS_SCALE_SEARCH
from llava_sp.utils.errors import UserError
from tests.train.tools import Samples, build_model, image_sample, make_trainer, text_sample

Parts = tuple[Path, Path]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def token_losses(model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
    """The loss of each supervised token of a text-only sample."""
    model.train()
    logits = model(input_ids=sample["input_ids"][None]).logits[0, :-1].float()
    targets = sample["labels"][1:]
    losses = nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    return losses[targets != IGNORE_INDEX]


@pytest.mark.parametrize("average", ["token", "microbatch"])
def test_the_loss_is_averaged_as_asked_for(tiny_parts: Parts, tmp_path: Path, average: str) -> None:
    model, processor = build_model(tiny_parts)
    samples = [text_sample("short", 8, 2, seed=1), text_sample("long", 30, 25, seed=2)]
    losses = [token_losses(model, sample) for sample in samples]
    means = torch.stack([loss.mean() for loss in losses])
    expected = torch.cat(losses).mean() if average == "token" else means.mean()
    assert abs(torch.cat(losses).mean() - means.mean()) > 0.01  # else the two could not be told apart
    expected.backward()
    before = weights(model)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if name in before}
    model.zero_grad()

    rate = 0.1
    trainer = make_trainer(
        model, processor, samples, tmp_path, loss_average=average, optim="sgd", learning_rate=rate, max_grad_norm=0
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter, before[name] - rate * gradients[name], rtol=1e-4, atol=1e-5)


def test_a_micro_batch_without_a_supervised_token_teaches_nothing(tiny_parts: Parts, tmp_path: Path) -> None:
    model, processor = build_model(tiny_parts)
    samples = [text_sample("all", 8, 6, seed=1), text_sample("none", 8, 0, seed=2)]
    expected = token_losses(model, samples[0]).mean().item() / 2
    make = {"loss_average": "microbatch", "learning_rate": 1e-3}
    trainer = make_trainer(model, processor, samples, tmp_path, **make)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


@pytest.mark.parametrize("average", ["token", "microbatch"])
def test_held_out_loss_is_the_mean_over_tokens(tiny_parts: Parts, tmp_path: Path, average: str) -> None:
    model, processor = build_model(tiny_parts)
    samples = [
        text_sample("short", 8, 2, seed=1),
        text_sample("none", 9, 0, seed=3),
        text_sample("long", 30, 25, seed=2),
    ]
    expected = torch.cat([token_losses(model, sample) for sample in samples]).mean().item()
    for size in (1, 2):
        settings = {"loss_average": average, "per_device_eval_batch_size": size}
        trainer = make_trainer(model, processor, samples, tmp_path, **settings)
        assert trainer.evaluate(Samples(samples))["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_log_tells_rates_tokens_and_padding(tiny_parts: Parts, tmp_path: Path) -> None:
    model, processor = build_model(tiny_parts, lora_enable=True, lora_r=2)
    image = image_sample("image", processor.image_token_id, processor.num_image_tokens, 3)
    samples = [text_sample("text", 10, 4), text_sample("longer", 30, 6), image, image]
    trainer = make_trainer(
        model,
        processor,
        samples,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        mm_projector_lr=1e-4,
        group_by_modality_length=True,
    )
    trainer.add_callback(RunCallback(trainer))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["learning_rate"] == log["learning_rate/lora"] == 1e-3
    assert log["learning_rate/projector"] == 1e-4
    assert log["supervised_tokens_per_step"] == 4 + 6 + 3 + 3
    width = len(image["input_ids"])
    assert log["padding_share"] == pytest.approx(20 / (2 * 30 + 2 * width), abs=1e-4)
    for name in ("tokens_per_second", "samples_per_second", "grad_norm"):
        assert log[name] > 0


@pytest.mark.parametrize("loss_at_fault", [True, False])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(
    tiny_parts: Parts, tmp_path: Path, loss_at_fault: bool
) -> None:
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    sample = image_sample("culprit", processor.image_token_id, processor.num_image_tokens, 3)
    if loss_at_fault:
        sample["pixel_values"] = sample["pixel_values"] * math.nan
    else:
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        first.register_hook(lambda gradient: gradient * math.inf)
    before = weights(model)
    trainer = make_trainer(model, processor, [sample], tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    with pytest.raises(UserError, match="step 1.*culprit" if loss_at_fault else "gradient's norm.*step 1"):
        trainer.train()
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])
    assert not list(tmp_path.glob("checkpoint-*"))


def test_in_fp16_the_search_for_the_loss_scale_has_an_end(
    tiny_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    trainer = make_trainer(model, processor, [text_sample("one", 9, 4)], tmp_path)
    trainer.args.fp16 = True
    norms = {"overflow": torch.tensor(math.inf), "fine": torch.tensor(1.0)}
    for name in ["overflow"] * LOSS_SCALE_SEARCH + ["fine"] + ["overflow"] * LOSS_SCALE_SEARCH:
        assert trainer._get_grad_norm(model, grad_norm=norms[name]) == norms[name]
    with pytest.raises(UserError, match="gradient's norm is not finite"):
        trainer._get_grad_norm(model, grad_norm=norms["overflow"])

    def end_of_search(*args: Any, **kwargs: Any) -> None:
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")

    monkeypatch.setattr(transformers.Trainer, "training_step", end_of_search)
    with pytest.raises(UserError, match="gradient's norm is not finite in step 1"):
        trainer.training_step(model, {})


def test_deepspeed_ends_its_search_by_the_words_that_are_looked_for() -> None:
    loss_scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")
    scaler = loss_scaler.DynamicLossScaler(1, 1000, min_scale=1, delayed_shift=1, consecutive_hysteresis=False)
    with pytest.raises(Exception, match="loss scale already at minimum"):
        scaler.update_scale(overflow=True)


def test_checkpoints_come_whole_and_the_oldest_go(tiny_parts: Parts, tmp_path: Path) -> None:
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    samples = [image_sample(str(i), processor.image_token_id, processor.num_image_tokens, 3, seed=i) for i in range(4)]
    trainer = make_trainer(
        model,
        processor,
        samples,
        tmp_path,
        gradient_accumulation_steps=1,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        learning_rate=1e-3,
    )
    trainer.train()
    trainer.settle()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    reloaded, _ = loading.load(tmp_path / "checkpoint-4")
    found = dict(reloaded.named_parameters())
    for name, tensor in weights(model).items():
        assert torch.equal(found[name], tensor)


def test_before_the_first_step_saving_is_tried_and_leaves_nothing(
    tiny_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    trainer = make_trainer(model, processor, [text_sample("a", 5, 2)], tmp_path)
    trainer.add_callback(RunCallback(trainer))
    saved: list[str] = []
    monkeypatch.setattr(
        loading, "save", lambda *args, **kwargs: saved.append(args[2]) or (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        trainer.train()
    assert len(saved) == 1
    assert trainer.state.global_step == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_the_first_step(
    tiny_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = build_model(tiny_parts, tune_mm_mlp_adapter=True)
    trainer = make_trainer(model, processor, [text_sample("a", 5, 2)], tmp_path)
    trainer.add_callback(RunCallback(trainer))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"0\.0 GiB free"):
        trainer.train()
