"""Benchmarks while training: each rank answers its share, and the log has the scores beside the loss."""

import math
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from llava_sp.data.conversation import get_template
from llava_sp.eval.answers import Answer, Answers, record
from llava_sp.eval.benchmarks import get_benchmark
from llava_sp.eval.benchmarks.base import Benchmark
from llava_sp.eval.inference import Failure, generate_answers, share_of
from llava_sp.eval.questions import Question, check_images
from llava_sp.model.trainable import plain_model
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.callbacks import stop
from llava_sp.train.trainer import LlavaSPTrainer, smaller_batches_advised
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger
from llava_sp.utils.ranks import in_group, rank, world_size

logger = get_logger(__name__)


def choose_benchmarks(names: str) -> list[Benchmark]:
    """Returns the benchmarks of `--eval_benchmarks`.

    Raises:
        UserError: There is no such benchmark, or it cannot be scored here.
    """
    chosen = [get_benchmark(name) for name in names.split(",")]
    for benchmark in chosen:
        if benchmark.scored != "here":
            raise UserError(
                f"--eval_benchmarks {benchmark.name}: it is scored by a {benchmark.scored}, not while training; leave "
                "it to python -m llava_sp.eval."
            )
    return chosen


class BenchmarkCallback(TrainerCallback):
    """Asks a model under training the questions of benchmarks, every so many steps and after the last.

    A signal ends that at once, on all ranks. After the last step, the same command then asks anew.

    Args:
        trainer: The trainer that the callback is added to.

    Raises:
        UserError: Questions or images are missing or malformed.
    """

    def __init__(self, trainer: LlavaSPTrainer) -> None:
        self.trainer = trainer
        self.root = Path(trainer.args.eval_data_root)
        self.questions: list[tuple[Benchmark, list[Question]]] = []
        for benchmark in choose_benchmarks(trainer.args.eval_benchmarks or ""):
            folder = self.root / benchmark.folder
            questions = benchmark.questions(folder)
            check_images(questions, folder / benchmark.images)
            self.questions.append((benchmark, questions))

    def on_step_end(self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluates where it is time to; a checkpoint of this step is saved after that and holds the scores."""
        step = state.global_step
        if step % evaluation_steps(args, state) == 0 and step < state.max_steps and not self.trainer.stopped_by:
            wanted = control.should_log
            self._evaluate()
            control.should_log = wanted  # logging has cleared it, and the loss of this step is still to come
            if self.trainer.stopped_by:
                stop(control)

    def on_train_end(self, args: TrainArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluates after the last step, also where the run has been interrupted since."""
        if state.global_step >= state.max_steps and not self.trainer.stopped_by:
            self._evaluate()
            if self.trainer.stopped_by:
                self.trainer.save_checkpoint()

    def _evaluate(self) -> None:
        """Logs the scores, the same on all ranks, unless a signal comes meanwhile; a collective call."""
        self.trainer.beat("answering benchmarks", slow=True)
        with self.trainer.meter.paused(), smaller_batches_advised(self.trainer.args):
            scores = self._scores()
        if not self.trainer.stopped_by:
            self.trainer.log(scores)

    def _scores(self) -> dict[str, float]:
        """Returns the scores as they are logged; of a part of them if a signal comes."""
        logs: dict[str, float] = {}
        for benchmark, questions in self.questions:
            answers = self._answer(benchmark, questions)
            if self.trainer.stopped_by:
                break
            strict = len(answers) < len(questions)
            try:
                scores = benchmark.score(answers, self.root / benchmark.folder, strict=strict)
            except UserError as error:  # the same on all ranks, and no reason to lose a training
                logger.warning("No score for %s: %s", benchmark.name, error)
                continue
            prefix = f"eval_{benchmark.name}"
            logs[f"{prefix}_{scores.headline}"] = scores.metrics[scores.headline]
            logs |= {f"{prefix}_{name}": value for name, value in scores.categories.items()}
            logs |= {f"{prefix}_missing": float(len(questions) - len(answers))} if strict else {}
        return logs

    def _answer(self, benchmark: Benchmark, questions: list[Question]) -> Answers:
        """Has each rank answer its share, which take equally long; returns all answers in the questions' order.

        After each answer all ranks agree on whether to go on: one that is to stop may have little time left.
        """
        trainer = self.trainer
        shares = [share_of(questions, number, world_size()) for number in range(world_size())]
        own, most = shares[rank()], max(map(len, shares))
        model = plain_model(trainer.model)
        given: dict[tuple[str | int, str], str] = {}
        training = model.training
        model.eval()
        try:
            with trainer.accelerator.autocast():
                for question, answer in generate_answers(
                    model,
                    trainer.processor,
                    own,
                    image_folder=self.root / benchmark.folder / benchmark.images,
                    template=get_template(trainer.processor.conversation_template),
                    settings=benchmark.settings,
                    batch_size=trainer.args.per_device_eval_batch_size,
                ):
                    trainer.watchdog.go_on()
                    if trainer.asked_to_stop():
                        return []
                    if not isinstance(answer, Failure):
                        given[question.key] = answer
                for _ in range(most - len(own)):  # which some other rank has more to answer
                    if trainer.asked_to_stop():
                        return []
        finally:
            model.train(training)
        for share in _gather(given):
            given |= share
        return [
            Answer(question.id, question.prompt, given[question.key], record(question, given[question.key], "training"))
            for question in questions
            if question.key in given
        ]


def evaluation_steps(args: TrainArguments, state: TrainerState) -> int:
    """Returns the steps between two evaluations: as given, else those of the held-out loss, else of the checkpoints."""
    steps = args.eval_benchmark_steps
    if steps is None:
        if args.eval_strategy == "steps":
            steps = state.eval_steps
        else:
            steps = state.save_steps if args.save_strategy == "steps" else state.max_steps
    return math.ceil(steps * state.max_steps) if steps < 1 else int(steps)


def _gather(given: dict[tuple[str | int, str], str]) -> list[dict[tuple[str | int, str], str]]:
    """Returns what each rank gives, on all ranks."""
    if not in_group():
        return [given]
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, given)
    return shares
