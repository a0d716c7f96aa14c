"""A training run from its command line to its summary."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from llava_sp.data.collator import Collator
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.train import assembly, checkpoint, report
from llava_sp.train.batch_plan import BatchPlan
from llava_sp.train.benchmarks import BenchmarkCallback
from llava_sp.train.callbacks import RunCallback, preempted
from llava_sp.train.command_line import RunArguments, build_arguments, collect, complete
from llava_sp.train.elastic import REPARTITIONED, repartition
from llava_sp.train.events import append
from llava_sp.train.inputs import check_data, check_inputs
from llava_sp.train.preflight import check_trainables
from llava_sp.train.provenance import describe
from llava_sp.train.runtime import on_first_rank, prepare_process
from llava_sp.train.trainer import LlavaSPTrainer
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import making, write_json
from llava_sp.utils.lock import locked
from llava_sp.utils.ranks import is_main


def train(argv: list[str], *, ranks: int) -> None:
    """Runs what a command line asks for.

    Args:
        argv: YAML files, then flags.
        ranks: Number of processes that train together.

    Raises:
        UserError: Something that the user can mend.
    """
    given = collect(argv)
    plan = complete(given, ranks=ranks)
    check_inputs(given)
    if given.get("dry_run"):
        show_plan(given, plan)
        return
    prepare_process(deepspeed=bool(given.get("deepspeed")), use_cpu=given.get("use_cpu", False))
    run = build_arguments(given, plan)
    folder = Path(run.training.output_dir)
    with entered(folder, run) as resume:
        if checkpoint.is_complete(folder):
            if is_main():
                out(f"{folder} holds the complete result of this very run; nothing is left to do.")
        else:
            with memory_explained(run):
                train_from(resume, run)


def train_from(resume: Path | None, run: RunArguments) -> None:
    """Trains from a checkpoint of this run, or from its beginning, to its end."""
    folder, ranks = Path(run.training.output_dir), run.batch_plan.ranks
    written_by = checkpoint.written_by(resume) if resume else ranks
    state = resume
    if resume is not None and written_by != ranks and run.training.deepspeed:
        state = on_first_rank(partial(repartition, resume, ranks=ranks, into=folder / REPARTITIONED))
    transformers.set_seed(run.training.seed)
    with assembly.whole_weights(run):
        model, processor = assembly.load_model(run, resume)
    check_trainables(model)
    if is_main():
        out(f"{run.batch_plan}\n{report.trainable_report(model)}")
    trainer, callback = make_trainer(model, processor, run)
    trainer.other_ranks = written_by != ranks
    if resume is not None and any(own.samefile(resume) for own in checkpoint.checkpoints(folder)):
        trainer.saved_step = checkpoint.step_of(resume)
    if resume is not None and is_main():
        told = f"continuing from {resume}" + f", on {ranks} rank(s) in place of {written_by}" * trainer.other_ranks
        out(told)
        # Where the command line asks for this very checkpoint, it is where the run begins; see `find_resume`.
        asked = str(resume.resolve()) if resume == Path(run.training.resume_from_checkpoint or "") else None
        append(folder, "resumed", told, checkpoint=resume.name, ranks=ranks, begun_from=asked)
    with trainer.signals, trainer.watchdog, trainer.sealing:
        try:
            result = trainer.train(resume_from_checkpoint=str(state) if state else None)
            if trainer.stopped_by:
                raise preempted(trainer)
            finish(trainer, folder, result.metrics, stopped_early=callback.stopped_early)
        except Exception:
            if trainer.completing and not is_main():
                # Torchrun ends the first rank as soon as another has left, also amid completing a checkpoint.
                trainer.beat("waiting for a checkpoint's completion, to end by an error", slow=True)
                checkpoint.wait_for_completion(folder, trainer.args.stall_timeout or trainer.args.ddp_timeout)
            raise


@contextmanager
def memory_explained(run: RunArguments) -> Iterator[None]:
    """Says what needs less memory where there was too little.

    Raises:
        UserError: There was.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if advice := report.memory_advice(run, error):
            raise UserError(advice) from error
        raise


def show_plan(given: dict[str, Any], plan: BatchPlan) -> None:
    """Prints what a run would do, in one process and without a GPU, however many the run itself will have."""
    prepare_process(deepspeed=bool(given.get("deepspeed")), use_cpu=True)
    run = build_arguments({**given, "use_cpu": True}, plan)
    run.training.use_cpu = given.get("use_cpu", False)
    with assembly.whole_weights(run):
        model, processor = assembly.plan_model(run)
    dataset = assembly.make_dataset(run.data.data_path, run, processor)
    if "check_data" in given:
        check_data(dataset, run.data.check_data, run.training.max_bad_share)
    report.print_dry_run(model, processor, dataset, run)


@contextmanager
def entered(folder: Path, run: RunArguments) -> Iterator[Path | None]:
    """Holds the output folder, as this run's own; yields the checkpoint to continue from, if there is one."""
    with ExitStack() as held:

        def enter() -> Path | None:
            with making(folder):
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
            checkpoint.claim_folder(folder, checkpoint.run_identity(run))
            if checkpoint.is_complete(folder):
                return None
            checkpoint.recover(folder)
            wanted, deepspeed = run.training.resume_from_checkpoint, bool(run.training.deepspeed)
            resume = checkpoint.find_resume(wanted, folder, deepspeed=deepspeed)
            if resume is None and run.model.init_from:
                checkpoint.check_start(Path(run.model.init_from))
            return resume

        yield on_first_rank(enter)


def make_trainer(
    model: nn.Module, processor: LlavaSPProcessor, run: RunArguments
) -> tuple[LlavaSPTrainer, RunCallback]:
    """Opens and checks the data, and puts the trainer together."""
    share = run.training.max_bad_share
    paths = (run.data.data_path, run.data.eval_data_path)
    opened = [assembly.make_dataset(path, run, processor, replace_bad=share > 0) for path in paths if path]
    for data in opened:
        on_first_rank(partial(check_data, data, run.data.check_data, share))
    dataset, held_out = (*opened, None)[:2]
    trainer = LlavaSPTrainer(
        model=model,
        args=run.training,
        processor=processor,
        stage=run.model.stage,
        details=describe(run),
        train_dataset=dataset,
        eval_dataset=held_out,
        data_collator=Collator(processor.tokenizer.pad_token_id),
    )
    callback = RunCallback(trainer)
    trainer.add_callback(callback)
    if run.training.eval_benchmarks:
        trainer.add_callback(BenchmarkCallback(trainer))
    return trainer, callback


def finish(trainer: LlavaSPTrainer, folder: Path, metrics: dict[str, Any], *, stopped_early: bool) -> None:
    """Saves the result and tells where it is; a run that was stopped early has none yet."""
    trainer.settle()
    step, last = trainer.state.global_step, trainer.state.max_steps
    if stopped_early:
        if is_main():
            out(f"stopped after step {step} of {last}, as asked; the same command without it continues from {folder}")
        return
    if trainer.eval_dataset is not None:
        told = [line for line in trainer.state.log_history if "eval_loss" in line and line["step"] == step]
        held_out = told[-1] if told else trainer.evaluate()
        metrics.update({name: value for name, value in held_out.items() if name.startswith("eval_")})
    trainer.beat("saving the result", slow=True)
    trainer.save_model()
    trainer.save_state()
    trainer.wait_for_all()
    if is_main():
        checkpoint.remove_surplus(folder, trainer.args.save_total_limit)  # a kill amid that may have left one
        metrics = {"steps": step, **{name: value for name, value in metrics.items() if math.isfinite(value)}}
        write_json(folder / checkpoint.METRICS_NAME, metrics)
        report.print_result(folder, trainer.stage, metrics)
