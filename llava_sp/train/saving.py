"""The part of the trainer that writes checkpoints and takes them up again."""

import shutil
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer

from llava_sp.model import loading
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.train import checkpoint as checkpointing
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.elastic import reseed
from llava_sp.train.finite import check_finite
from llava_sp.train.metrics import Meter
from llava_sp.train.runtime import agree, on_first_rank
from llava_sp.train.signals import StopSignals
from llava_sp.train.watchdog import Watchdog
from llava_sp.utils.errors import UserError


class SavingTrainer(Trainer):
    """Saves checkpoints that take their place when they are whole, also where a signal asks for one.

    Args:
        model: The model, its trainable parameters chosen.
        args: The training arguments.
        processor: The model's processor; it is saved with every checkpoint.
        stage: The stage, for the checkpoints' cards.
        details: What else the checkpoints' cards tell.
        **kwargs: Passed on to `Trainer`.

    Attributes:
        completing: Whether a checkpoint may be on its way to its place, known alike on all ranks.
        other_ranks: Whether another number of ranks wrote the checkpoint that this run continues from.
        saved_step: Step of the last checkpoint that this run has saved or continues from, or None.
        sealing: The thread in which checkpoints are completed while the training goes on; a context manager.
        stopped_by: The signal that this run ends by, if one does.
    """

    args: TrainArguments

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
        # DeepSpeed's checkpoints hold what is trained. The rest is in place already when one is loaded.
        model.register_load_state_dict_post_hook(_forget_frozen)
        self.meter = Meter(args.device)
        self.signals = StopSignals()
        self.stopped_by: signal.Signals | None = None
        self.watchdog = Watchdog(Path(args.output_dir), args.stall_timeout)
        self.completing = False
        self.other_ranks = False
        self.saved_step: int | None = None
        self.sealing = ThreadPoolExecutor(1, thread_name_prefix="sealing")
        self._staging: Path | None = None
        self._sealed: Future[None] | None = None

    def beat(self, doing: str, *, slow: bool = False) -> None:
        """Tells the watchdog what begins in this step."""
        self.watchdog.beat(doing, self.state.global_step + 1, slow=slow)

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
        mend = f"Nothing of it is saved; {checkpointing.last_checkpoint(output)}"
        all_finite(trained, f"After step {step} the weights", mend)
        self._staging = staging = output / checkpointing.STAGING
        with self.meter.paused():
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:
                if self.args.should_save:  # others may still write to it
                    shutil.rmtree(staging, ignore_errors=True)
                cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error
                if _is_disk_error(cause):
                    raise checkpointing.unsaved(output, cause) from error
                raise
            finally:
                self._staging = None
            self.wait_for_all()
        self.saved_step, self.completing = step, True
        if self.args.should_save:
            self._sealed = self.sealing.submit(self._complete, staging, output)

    def _complete(self, staging: Path, output: Path) -> None:
        """Completes a checkpoint; if that fails, the run ends after the step that it is in."""
        try:
            checkpointing.complete(staging, output, ranks=self.args.world_size, keep=self.args.save_total_limit)
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
        self.completing = False

    def save_checkpoint(self) -> None:
        """Saves a checkpoint of the last step done, if there is none yet."""
        if self.state.global_step != self.saved_step:
            self._save_checkpoint(self.model, trial=None)

    def asked_to_stop(self) -> signal.Signals | None:
        """Returns the signal that asked some rank to end the run; a collective call."""
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


def _is_disk_error(error: BaseException) -> bool:
    """Whether an error is that of a disk that is full or fails; PyTorch's own is told by where it comes from."""
    return isinstance(error, OSError | SafetensorError) or "inline_container.cc" in str(error)


def _forget_frozen(module: nn.Module, incompatible: Any) -> None:
    """Takes frozen parameters out of the missing keys of a load, in place."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in frozen]
