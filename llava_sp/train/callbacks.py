"""What happens around the steps: checks before the first, epochs, a stop on request."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from llava_sp.train.arguments import TrainArguments
from llava_sp.train.elastic import REPARTITIONED
from llava_sp.train.events import append, record
from llava_sp.train.preflight import check_before_first_step
from llava_sp.train.signals import Preempted
from llava_sp.train.spikes import SpikeDetector
from llava_sp.train.trainer import LlavaSPTrainer
from llava_sp.utils.ranks import is_main


class RunCallback(TrainerCallback, ExportableState):
    """Watches over one run. What it has learned of the loss is part of each checkpoint.

    Args:
        trainer: The trainer that the callback is added to.
    """

    def __init__(self, trainer: LlavaSPTrainer) -> None:
        self.trainer = trainer
        self.stopped_early = False
        self.spikes = SpikeDetector()

    def state(self) -> dict[str, Any]:
        """What the Trainer saves of this callback."""
        return {"args": {}, "attributes": {"spikes": self.spikes.state_dict()}}

    def on_train_begin(self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks that DeepSpeed drives the run if it should, and that saving works."""
        check_before_first_step(self.trainer)
        if is_main():  # all ranks have read it by now
            shutil.rmtree(Path(args.output_dir) / REPARTITIONED, ignore_errors=True)
        saved: Any = state.stateful_callbacks
        self.spikes.load_state_dict(saved[type(self).__name__]["attributes"]["spikes"])
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
        """Looks at the loss; stops where `--stop_after_steps` or a signal says, with a checkpoint to continue from."""
        self.watch_loss()
        if args.stop_after_steps is not None and args.stop_after_steps <= state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped_early = True
        if self.trainer.asked_to_stop():
            stop(control)
        log_before_checkpoints(control)
        return control

    def watch_loss(self) -> None:
        """Tells if the loss of the step just done is a spike; a collective call."""
        step = self.trainer.state.global_step
        if spike := self.spikes.observe(step, self.trainer.take_step_loss()):
            values = {name: value for name, value in vars(spike).items() if name != "step"}
            record(Path(self.trainer.args.output_dir), "loss_spike", str(spike), step=step, **values)

    def on_epoch_end(
        self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Logs where a checkpoint is saved at the end of an epoch; nothing more is due if it was cut short."""
        if self.stopped_early or self.trainer.stopped_by:
            control.should_save = control.should_evaluate = False
        log_before_checkpoints(control)
        return control

    def on_prediction_step(
        self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the run in the midst of an evaluation if a signal asks for it, with a checkpoint of the step before."""
        self.trainer.watchdog.go_on()
        if self.trainer.asked_to_stop():
            self.trainer.save_checkpoint()
            raise preempted(self.trainer)


def log_before_checkpoints(control: TrainerControl) -> None:
    """Has the steps since the log's last line told; the log goes to the checkpoint, and an evaluation may make one."""
    control.should_log |= control.should_save or control.should_evaluate


def stop(control: TrainerControl) -> None:
    """Has the Trainer log and save after this step, and end."""
    control.should_log = control.should_save = control.should_training_stop = True
    control.should_evaluate = False  # whoever asks may not wait for it


def preempted(trainer: LlavaSPTrainer) -> Preempted:
    """Returns what ends a run that a signal stopped and that has saved a checkpoint; a collective call."""
    assert trainer.stopped_by is not None
    trainer.settle()
    state, output = trainer.state, Path(trainer.args.output_dir)
    folder = output / f"checkpoint-{state.global_step}"
    ended = Preempted(trainer.stopped_by, folder, state.global_step, state.max_steps)
    if is_main():
        append(output, "preempted", str(ended), signal=trainer.stopped_by.name, step=state.global_step)
    return ended
