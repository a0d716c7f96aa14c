"""Makes something go wrong in this very process, as the environment variable FAULT says: `name:argument`."""

import errno
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from llava_sp.train import benchmarks, checkpoint, trainer
from llava_sp.utils.ranks import rank, world_size

Trainer = trainer.LlavaSPTrainer
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_last() -> bool:
    """Whether this is the last rank."""
    return rank() == world_size() - 1


def kill_at_file_event(number: str) -> None:
    """Kills this process at the n-th time, after the first step, that it opens a file to write, renames or removes one.

    With a path in place of a number, a file there grows by a byte each time.
    """
    seen, training = 0, False
    count = None if number.isdigit() else os.open(number, os.O_WRONLY | os.O_CREAT)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not training or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if event == "open" and (not arguments[2] & WRITES or str(arguments[0]).startswith("/dev")):
            return
        seen += 1
        if count is not None:
            os.write(count, b".")
        elif seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(*arguments: Any, **kwargs: Any) -> Any:
        nonlocal training
        training = True
        return step(*arguments, **kwargs)

    step, Trainer.training_step = Trainer.training_step, begin
    sys.addaudithook(watch)


def log_ids(path: str) -> None:
    """Appends a line for each micro-batch: the optimizer step, the rank, the samples' ids."""
    take = Trainer.get_batch_samples

    def log(self: Any, *arguments: Any) -> Any:
        batches, items = take(self, *arguments)
        with Path(f"{path}.{rank()}").open("a") as file:
            for batch in batches:
                file.write(json.dumps([self.state.global_step + 1, rank(), batch["sample_ids"]]) + "\n")
        return batches, items

    Trainer.get_batch_samples = log


def full_disk(limit: str) -> None:
    """Lets no file grow beyond so many bytes from a step on: `10000@3`."""
    size, step = map(int, limit.split("@"))

    def limited(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return train(self, *arguments, **kwargs)

    train, Trainer.training_step = Trainer.training_step, limited


def failing_disk(step: str) -> None:
    """Fails to bring the checkpoint of a step to the disk, when it is written."""

    def failing(folder: Path) -> None:
        if folder.name == f"checkpoint-{step}":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        seal(folder)

    seal, checkpoint.seal = checkpoint.seal, failing


def slow_disk(step: str) -> None:
    """Takes two seconds longer to complete the checkpoint of a step."""

    def slow(folder: Path) -> None:
        if folder.name == f"checkpoint-{step}":
            time.sleep(2)
        seal(folder)

    seal, checkpoint.seal = checkpoint.seal, slow


def other_disk(folder: str) -> None:
    """Has the last rank see another disk where the output folder is."""
    if is_last():
        sys.argv[sys.argv.index("--output_dir") + 1] = folder


def broken_rank(step: str) -> None:
    """Ends the last rank amid a step, by an error that no other rank meets."""

    def broken(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == int(step) and is_last():
            raise RuntimeError("this rank alone is broken")
        return train(self, *arguments, **kwargs)

    train, Trainer.training_step = Trainer.training_step, broken


def signal_at_step(which: str) -> None:
    """Sends a signal to this very process amid a step, on the last rank: `SIGTERM@3`."""
    name, step = which.split("@")

    def signalled(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == int(step) and is_last():
            os.kill(os.getpid(), signal.Signals[name])
        return train(self, *arguments, **kwargs)

    train, Trainer.training_step = Trainer.training_step, signalled


def signal_in_evaluation(name: str) -> None:
    """Sends a signal to this very process in the second batch of an evaluation."""

    def signalled(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            os.kill(os.getpid(), signal.Signals[name])
        return predict(self, *arguments, **kwargs)

    seen = 0
    predict, Trainer.prediction_step = Trainer.prediction_step, signalled


def signal_in_benchmark(name: str) -> None:
    """Sends a signal to the last rank before its first answer to a benchmark; no other rank may go on to a second."""

    def answered(*arguments: Any, **kwargs: Any) -> Any:
        if is_last():
            os.kill(os.getpid(), signal.Signals[name])
        yield next(answers := generate(*arguments, **kwargs))
        raise RuntimeError(f"rank {rank()} goes on, after {sum(1 for _ in answers)} answers")

    generate, benchmarks.generate_answers = benchmarks.generate_answers, answered


def stall(how: str) -> None:
    """Stops for good amid a step, on the last rank: `sleep@3`, or `stopped@3` as by SIGSTOP, or `loader@3`."""
    what, step = how.split("@")

    def stuck(method: Any) -> Any:
        def stop(self: Any, *arguments: Any, **kwargs: Any) -> Any:
            if self.state.global_step + 1 == int(step) and is_last():
                if what == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(1000)
            return method(self, *arguments, **kwargs)

        return stop

    name = "_prepare_inputs" if what == "loader" else "compute_loss"
    setattr(Trainer, name, stuck(getattr(Trainer, name)))


def spike(how: str) -> None:
    """Makes the loss that is seen in one step so many times what it is: `50@30`."""
    times, step = map(int, how.split("@"))

    def jump(self: Any) -> float:
        return float(take(self) * (times if self.state.global_step == step else 1))

    take, Trainer.take_step_loss = Trainer.take_step_loss, jump


def pause_at_step(step: str) -> None:
    """Waits two seconds before each micro-batch of a step."""

    def slow(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == int(step):
            time.sleep(2)
        return train(self, *arguments, **kwargs)

    train, Trainer.training_step = Trainer.training_step, slow


def slow_steps(seconds: str) -> None:
    """Makes each micro-batch take so much longer, and says when the first one begins."""
    begun = False

    def slow(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        nonlocal begun
        if not begun:
            begun = True
            os.write(2, b"the first step begins\n")
        time.sleep(float(seconds))
        return train(self, *arguments, **kwargs)

    train, Trainer.training_step = Trainer.training_step, slow


def not_finite(where: str) -> None:
    """Makes a loss, gradient, input, weight or the result of an update NaN in one step: `loss@3`, on the last rank."""
    what, step = where.split("@")
    if not is_last():
        return
    compute = transformers.Trainer.compute_loss

    def spoil(self: Any, model: Any, inputs: dict[str, Any], *arguments: Any, **kwargs: Any) -> Any:
        now = self.state.global_step + 1 == int(step) and model.training
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if now and what == "weight":
            trained[-1].data.view(-1)[0] = torch.nan
        if now and what == "input" and "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"] * torch.nan
        loss, outputs = compute(self, model, inputs, *arguments, **kwargs)
        if now and what == "loss":
            loss = loss * torch.nan
        if now and what == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss, outputs

    transformers.Trainer.compute_loss = spoil
    if what == "update":
        end = Trainer.note_learning_rates

        def spoil_update(self: Any) -> None:
            end(self)
            if self.state.global_step + 1 == int(step):
                next(parameter for parameter in self.model.parameters() if parameter.requires_grad).data.fill_(
                    torch.nan
                )

        Trainer.note_learning_rates = spoil_update


if __name__ == "__main__":
    for fault in os.environ["FAULT"].split(","):
        name, _, argument = fault.partition(":")
        globals()[name](argument)
