"""Hugging Face's Trainer, with what LLaVA-SP needs of its own: order, learning rates, checks, and what is saved."""

import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from llava_sp.data.sampler import ModalityLengthSampler
from llava_sp.model import loading
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.train import checkpoint as checkpointing
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.elastic import reseed
from llava_sp.train.finite import check_finite
from llava_sp.train.metrics import FlopCounter, Meter, count_supervised
from llava_sp.train.optimizer import parameter_groups
from llava_sp.train.quarantine import Quarantine
from llava_sp.train.runtime import agree, on_first_rank
from llava_sp.train.signals import StopSignals
from llava_sp.train.watchdog import Watchdog
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)


class LlavaSPTrainer(Trainer):
    """Trains a LLaVA-SP model in either stage.

    Args:
        model: The model, its trainable parameters chosen.
        args: The training arguments.
        processor: The model's processor; it is saved with every checkpoint.
        stage: The stage, for the checkpoints' cards.
        details: What else the checkpoints' cards tell.
        **kwargs: Passed on to `Trainer`.

    Attributes:
        other_ranks: Whether another number of ranks wrote the checkpoint that this run continues from.
        sealing: The thread in which checkpoints are completed while the training goes on; a context manager.
        stopped_by: The signal that this run ends by, if one does.
    """

    args: TrainArguments
    optimizer: Any

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainArguments,
        processor: LlavaSPProcessor,
        stage: str,
        details: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.processor = processor
        self.stage = stage
        self.details = details or {}
        if args.loss_average == "microbatch":
            # Trainer then leaves the mean over each micro-batch to the model, and averages those means.
            self.model_accepts_loss_kwargs = False
        # DeepSpeed's checkpoints hold what is trained. The rest is in place already when one is loaded.
        model.register_load_state_dict_post_hook(_forget_frozen)
        self._flops = FlopCounter(model)
        self.meter = Meter(args.device)
        self._group_rates: dict[str, float] = {}
        self._staging: Path | None = None
        self.sealing = ThreadPoolExecutor(1, thread_name_prefix="sealing")
        self._sealed: Future[None] | None = None
        self.signals = StopSignals()
        self.watchdog = Watchdog(Path(args.output_dir), args.stall_timeout)
        self.stopped_by: signal.Signals | None = None
        self.other_ranks = False
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

    def beat(self, doing: str, *, slow: bool = False) -> None:
        """Tells the watchdog what begins in this step."""
        self.watchdog.beat(doing, self.state.global_step + 1, slow=slow)

    def training_step(self, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        """Makes the forward and the backward pass of one micro-batch, and with DeepSpeed the update."""
        self.beat("forward and backward pass")
        loss = super().training_step(*arguments, **kwargs)
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
        # In fp16, such norms are how the loss scale is found.
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)):
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
                f"{', '.join(names)}. Look at them, or lower the learning rate; {self._last_checkpoint()}"
            )
        agree(error)
        raise UserError(
            f"The gradient's norm is not finite in step {step}; stopped. Lower the learning rate; "
            f"{self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        found = checkpointing.checkpoints(Path(self.args.output_dir))
        return f"the last checkpoint is {found[-1]}." if found else "there is no checkpoint yet."

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
            with self.meter.paused():
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

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what is trained, with everything it takes to load it by its path alone."""
        state_dict = None
        if self.is_deepspeed_enabled and self.deepspeed.zero_optimization_stage() == 3:
            partial_only = loading.checkpoint_kind(self.model) != "full"
            state_dict = self.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=partial_only)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            details = {**self.details, "step": self.state.global_step, "of_steps": self.state.max_steps}
            loading.save(
                self.model,
                self.processor,
                folder,
                stage=self.stage,
                details=details,
                state_dict=state_dict,
                sealed=not _internal_call,  # a checkpoint is sealed with all its other files
            )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves into a folder of its own, which takes its place once all ranks are through and all is on the disk.

        For that, the training waits at `settle` only.
        """
        output = Path(self.args.output_dir)
        self.settle()
        self.beat("saving a checkpoint", slow=True)
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        step = self.state.global_step
        all_finite(trained, f"After step {step} the weights", f"Nothing of it is saved; {self._last_checkpoint()}")
        self._staging = staging = output / checkpointing.STAGING
        with self.meter.paused():
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:
                shutil.rmtree(staging, ignore_errors=True)
                cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error
                if is_disk_error(cause):
                    raise checkpointing.unsaved(output, cause) from error
                raise
            finally:
                self._staging = None
            self.wait_for_all()
        if self.args.should_save:
            self._sealed = self.sealing.submit(self._complete, staging, output)

    def _complete(self, staging: Path, output: Path) -> None:
        """Completes a checkpoint; if that fails, the run ends after the step that it is in."""
        try:
            checkpointing.complete(staging, output, keep=self.args.save_total_limit)
        except BaseException:
            self.signals.received = signal.SIGTERM  # all ranks then come to save, and `settle` raises the error
            raise

    def settle(self) -> None:
        """Waits until the last checkpoint is in its place; a collective call.

        Raises:
            UserError: It could not be completed.
        """
        self.beat("completing a checkpoint", slow=True)
        sealed, self._sealed = self._sealed, None
        with self.meter.paused():
            on_first_rank(lambda: sealed.result() if sealed else None)

    def save_checkpoint(self) -> None:
        """Saves a checkpoint of the last step done."""
        self._save_checkpoint(self.model, trial=None)

    def asked_to_stop(self) -> signal.Signals | None:
        """Returns the signal that asked some rank to end a run that is not at its end; a collective call."""
        if self.state.global_step < self.state.max_steps:
            self.stopped_by = self.signals.agreed()
        return self.stopped_by

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Takes up the random streams of a checkpoint, or new ones where those belong to another number of ranks."""
        if checkpoint is not None and self.other_ranks:
            reseed(self.args.seed, step=self.state.global_step, rank=self.args.process_index)
        else:
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing to do: a run that continues builds its model from the checkpoint in the first place."""

    def trim_engine_checkpoints(self) -> None:
        """Lets DeepSpeed save what is trained only, not 7 billion frozen weights with every checkpoint."""
        self.deepspeed.save_checkpoint = partial(self.deepspeed.save_checkpoint, exclude_frozen_parameters=True)

    def wait_for_all(self) -> None:
        """Waits until every rank is here."""
        if self.args.world_size > 1:
            dist.barrier()


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


def all_finite(weights: Iterable[tuple[str, torch.Tensor]], what: str, mend: str) -> None:
    """Checks weights by `check_finite` on all ranks; a collective call.

    Raises:
        UserError: On some rank, some are not finite.
    """
    error = None
    try:
        check_finite(weights, what, mend)
    except UserError as caught:
        error = caught
    agree(error)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is that of a disk that is full or fails; PyTorch's own is told by where it comes from."""
    return isinstance(error, OSError | SafetensorError) or "inline_container.cc" in str(error)


def _forget_frozen(module: nn.Module, incompatible: Any) -> None:
    """Takes frozen parameters out of the missing keys of a load, in place."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in frozen]
