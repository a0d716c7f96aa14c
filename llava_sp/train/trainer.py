"""Hugging Face's Trainer, with what LLaVA-SP needs of its own: order, learning rates, checks, and what is logged."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from llava_sp.data.sampler import ModalityLengthSampler
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.checkpoint import last_checkpoint
from llava_sp.train.metrics import FlopCounter, count_supervised
from llava_sp.train.optimizer import parameter_groups
from llava_sp.train.quarantine import Quarantine
from llava_sp.train.runtime import agree
from llava_sp.train.saving import SavingTrainer
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)


LOSS_SCALE_SEARCH = 30
"""Steps in succession whose gradient may overflow in fp16: the loss scale begins at 2^16 and is halved at each."""


class LlavaSPTrainer(SavingTrainer):
    """Trains a LLaVA-SP model in either stage.

    Args:
        model: The model, its trainable parameters chosen.
        args: The training arguments.
        **kwargs: Passed on to `SavingTrainer`.
    """

    optimizer: Any

    def __init__(self, *, model: nn.Module, args: TrainArguments, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        if args.loss_average == "microbatch":
            # Trainer then leaves the mean over each micro-batch to the model, and averages those means.
            self.model_accepts_loss_kwargs = False
        self._flops = FlopCounter(model)
        self._group_rates: dict[str, float] = {}
        self._not_finite = 0  # so many gradient norms in succession
        self._step_loss = torch.zeros((), device=args.device)
        self._losses: list[tuple[torch.Tensor, list[str]]] = []  # of the micro-batches of a step, and their samples
        if self.train_dataset is not None:
            self.quarantine = Quarantine(Path(args.output_dir), len(self.train_dataset), args.max_bad_share)
        self.sampler: ModalityLengthSampler | None = None

    # ---- order of the data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> ModalityLengthSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        self.sampler = ModalityLengthSampler(
            dataset.modality_lengths,
            batch_size=self.args.train_batch_size,
            # Ranks and accumulation count alike, so that the order depends on the global batch alone.
            world_size=self.args.world_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            group=self.args.group_by_modality_length,
            drop_last=self.args.dataloader_drop_last,
        )
        return self.sampler

    # ---- optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the optimizer with one learning rate for the LLM or its LoRA, and one for the projector."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model,
                learning_rate=self.args.learning_rate,
                projector_learning_rate=self.args.mm_projector_lr,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    def note_learning_rates(self) -> None:
        """Remembers the rates of the update just made; the schedule moves on before they are logged."""
        self._group_rates = {f"learning_rate/{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    # ---- a step ----

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Goes through an epoch; not if the run was cut after its last step, which Trainer sees after a step only."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Takes the micro-batches of one optimizer step and counts what they hold."""
        self.beat("fetching its batches")
        self._losses = []
        batches: list[dict[str, Any]] = []
        broken = None
        try:
            batches.extend(islice(epoch_iterator, num_batches))
        except (UserError, RuntimeError) as error:
            broken = user_error(error)
        agree(broken)
        replaced = list(chain.from_iterable(batch.pop("replaced", []) for batch in batches))
        self.quarantine.note(replaced, self.state.global_step + 1)
        batches, items = super().get_batch_samples(iter(batches), num_batches, device)
        for batch in batches:
            self.meter.count(batch, self.floating_point_ops(batch))
        self.meter.steps += 1
        return batches, items

    def training_step(self, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        """Makes the forward and the backward pass of one micro-batch, and with DeepSpeed the update."""
        self.beat("forward and backward pass")
        try:
            loss = super().training_step(*arguments, **kwargs)
        except Exception as error:
            if "loss scale already at minimum" in str(error):  # DeepSpeed's, in fp16, on all ranks alike
                self._stop_as_not_finite(self.state.global_step + 1)
            raise
        self.beat("update")
        self._step_loss += loss.detach()
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Floating-point operations of one micro-batch of this rank, forward and backward; see `FlopCounter`."""
        # Of AnyRes the views, with those of zeros that fill up the batch: a few per cent of it all at most.
        views = inputs["pixel_values"].shape[:-3].numel() if "pixel_values" in inputs else 0
        return self._flops.batch(inputs["input_ids"].numel(), inputs["input_ids"].shape[1], views)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Computes the loss.

        In evaluation it is the mean over this batch of this rank, which `evaluation_loop` weighs.
        """
        sample_ids = inputs.pop("sample_ids")
        for bad in inputs.pop("replaced", []):  # of the held-out data; that of the training is in quarantine by now
            logger.warning(
                "Held-out sample %r cannot be read, %r takes its place: %s", bad.sample_id, bad.by, bad.message
            )
        inputs["use_cache"] = False  # a cache of keys and values is for generation
        supervised = count_supervised(inputs["labels"])
        items = num_items_in_batch if model.training else None
        loss, outputs = super().compute_loss(model, inputs, True, items)
        if not supervised:
            # A mean over nothing is no number; this is none to learn from, yet every parameter has its part in it.
            loss = 0.0 * outputs.logits[..., :1].sum()
        if model.training:
            # If it is not finite, no gradient of it may be: then all ranks stop at their norm, and none has to ask.
            loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
            self._losses.append((loss.detach(), sample_ids))
        else:
            self._evaluated += torch.stack([loss.detach().double() * supervised, supervised.double()])
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops if the norm is not finite: the update is still to come, and DeepSpeed has skipped it."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None or torch.isfinite(torch.as_tensor(norm)):
            self._not_finite = 0
            return norm
        self._not_finite += 1
        if self._not_finite > (LOSS_SCALE_SEARCH if self.args.fp16 else 0):
            self._stop_as_not_finite(self.state.global_step + 1)
        return norm

    def take_step_loss(self) -> float:
        """Returns the loss of the step just done, over all ranks; a collective call, once a step.

        Raises:
            UserError: It is not finite. In fp16 that is noticed here; there was no update, for no gradient was finite.
        """
        loss, self._step_loss = self._step_loss, torch.zeros_like(self._step_loss)
        if self.args.world_size > 1:
            dist.all_reduce(loss)
        if not torch.isfinite(loss):
            self._stop_as_not_finite(self.state.global_step)
        return loss.item() / self.args.world_size

    def _stop_as_not_finite(self, step: int) -> None:
        """Says what was not finite in a step, the same on all ranks; a collective call."""
        self.settle()
        names = next((ids for loss, ids in self._losses if not torch.isfinite(loss)), None)
        error = None
        if names:
            error = UserError(
                f"The loss is not finite in step {step}; stopped before the update. The samples of the micro-batch: "
                f"{', '.join(names)}. Look at them, or lower the learning rate; {last_checkpoint(self.args.output_dir)}"
            )
        agree(error)
        raise UserError(
            f"The gradient's norm is not finite in step {step}; stopped. Lower the learning rate; "
            f"{last_checkpoint(self.args.output_dir)}"
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Makes the loader of the held-out data; it draws from a generator of its own.

        So an evaluation leaves the random states of the training alone, and a run that skips one goes on as it would.
        """
        loader = super().get_eval_dataloader(eval_dataset)
        for one in (loader, getattr(loader, "base_dataloader", loader)):
            one.generator = torch.Generator()
        return loader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on the held-out data."""
        self.beat("evaluating", slow=True)
        try:
            with self.meter.paused(), smaller_batches_advised(self.args):
                return super().evaluate(*args, **kwargs)
        except (UserError, RuntimeError) as error:
            raise user_error(error) from None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluates; the loss is the mean over all supervised tokens, however they fall into batches and ranks.

        A rank whose last batch is short repeats samples to fill it, as in training; these count again.
        """
        self._evaluated = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        if self.args.world_size > 1:
            dist.all_reduce(self._evaluated)
        total, supervised = self._evaluated.tolist()
        if supervised:
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = total / supervised
        return output

    # ---- log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds learning rates, throughput, padding and MFU to each line of the training's log."""
        if "loss" in logs:
            logs.update(self._group_rates)
            logs.update(self.meter.report())
        if "train_loss" in logs and (mean := mean_loss(self.state.log_history)) is not None:
            # Of the whole run: Trainer knows only what this process did of it, which after the last step is nothing.
            logs["train_loss"] = mean
        super().log(logs, start_time)


@contextmanager
def smaller_batches_advised(args: TrainArguments) -> Iterator[None]:
    """Says what needs less memory where an evaluation takes more of it than the training.

    Raises:
        UserError: There is too little on the GPU.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = args.per_device_eval_batch_size
        if size == 1:  # then the model is too large, and its training says what to do
            raise
        raise UserError(
            f"The GPU is out of memory in an evaluation by {size} samples at a time; give --per_device_eval_batch_size "
            f"{size // 2}; {last_checkpoint(args.output_dir)}"
        ) from error


def mean_loss(history: list[dict[str, float]]) -> float | None:
    """Returns the mean loss over the steps that a log tells of; each of its lines is the mean since the one before.

    `None` for a run so short that no line was written.
    """
    lines = [(line["step"], line["loss"]) for line in history if "loss" in line]
    steps = [step for step, _ in lines]
    parts = [(step - before) * loss for before, (step, loss) in zip([0, *steps], lines, strict=False)]
    return sum(parts) / steps[-1] if steps else None


def user_error(error: Exception) -> UserError:
    """Returns what a user can mend; a worker process sends it at the end of its traceback.

    Raises:
        Exception: `error` itself, if it is of another kind.
    """
    *_, last = re.split(r"^llava_sp\.[\w.]*Error: ", str(error), flags=re.MULTILINE)
    if last != str(error):
        return UserError(last.strip())
    if isinstance(error, UserError):
        return error
    raise error
