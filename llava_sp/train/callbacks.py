"""What happens around the steps: checks before the first, epochs, a stop on request."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from llava_sp.train.arguments import TrainArguments
from llava_sp.train.preflight import check_before_first_step
from llava_sp.train.trainer import LlavaSPTrainer


class RunCallback(TrainerCallback):
    """Watches over one run.

    Args:
        trainer: The trainer that the callback is added to.
    """

    def __init__(self, trainer: LlavaSPTrainer) -> None:
        self.trainer = trainer
        self.stopped_early = False

    def on_train_begin(self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks that DeepSpeed drives the run if it should, and that saving works."""
        check_before_first_step(self.trainer)
        self.trainer.meter.start()

    def on_epoch_begin(self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells the sampler the epoch, also where a run continues in the middle of a later one."""
        assert self.trainer.sampler is not None
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(
        self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers the learning rates of this update for the log."""
        self.trainer.note_learning_rates()

    def on_step_end(
        self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stops where `--stop_after_steps` says, with a checkpoint to continue from."""
        if args.stop_after_steps is not None and args.stop_after_steps <= state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped_early = True
        return control
