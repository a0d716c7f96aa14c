"""Runs the whole recipe on the tiny world: both stages, VQA on held-out questions, scores, samples, loss curves."""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from llava_sp.playground.scorer import TaskScore, score_answers
from llava_sp.playground.world import WorldOptions, build_world
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, read_json_lines, write_json
from llava_sp.utils.ranks import LAUNCHER

VARIANTS = ("cropping", "pooling", "none")
STAGES = ("pretrain", "finetune_lora")
GLOBAL_BATCH = 16


@dataclass(frozen=True)
class Run:
    """One model trained on the world.

    Args:
        variant: One of `VARIANTS`.
        seed: Seed of initialisation, data order and dropout.
        folder: Where its checkpoints and answers go.
    """

    variant: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Name in tables and pictures."""
        return self.variant if self.seed == 0 else f"{self.variant}, seed {self.seed}"


def quickstart(world: Path, output: Path, variants: list[str], seeds: list[int]) -> None:
    """Builds the world, trains and questions the models, and shows what they learnt; what is there is reused.

    Args:
        world: Folder of the tiny world.
        output: Folder of the runs.
        variants: Models to train, of `VARIANTS`.
        seeds: Seeds to train each of them with.

    Raises:
        UserError: A step failed; the step itself has said why.
    """
    started = time.monotonic()
    _title("the tiny world")
    built = build_world(world, WorldOptions())
    out(f"{world} {'built' if built else 'is there, reused'}: scenes of handwritten digits and coloured shapes")
    runs = [Run(variant, seed, output / f"{variant}-{seed}") for variant in variants for seed in seeds]
    for run in runs:
        train(run, world)
        answer(run, world)
    _title("results")
    show(runs, world, output)
    out(f"\nall of it took {(time.monotonic() - started) / 60:.1f} minutes")


def train(run: Run, world: Path) -> None:
    """Runs both stages, as the scripts for the real sizes do: on all GPUs, or on two CPU ranks."""
    processes = count_processes()
    common = [f"--nproc_per_node={processes}", f"--per_device_train_batch_size={GLOBAL_BATCH // processes}"]
    common += [f"--seed={run.seed}", f"--image_folder={world / 'images'}"]
    if not torch.cuda.is_available():
        common.append("--use_cpu")
    folders = {stage: run.folder / stage for stage in STAGES}
    _title(f"{run.name}: stage 1, the projector learns from captions")
    _step(
        ["llava_sp.train.launch", "configs/train/tiny_pretrain.yaml", *common, f"--variant={run.variant}"],
        [f"--data_path={world / 'pretrain.json'}", f"--output_dir={folders['pretrain']}"],
    )
    _title(f"{run.name}: stage 2, LoRA on the LLM, and the projector, learn from questions")
    _step(
        ["llava_sp.train.launch", "configs/train/tiny_finetune_lora.yaml", *common],
        [f"--data_path={world / 'finetune.json'}", f"--output_dir={folders['finetune_lora']}"],
        [f"--init_from={folders['pretrain']}"],
    )


def answer(run: Run, world: Path) -> None:
    """Asks the held-out questions, and the same about wrong images: what is still right then was not seen."""
    for suffix in ("", "_wrong_image"):
        _title(f"{run.name}: answers to held-out questions{', about wrong images' if suffix else ''}")
        _step(
            ["llava_sp.eval.model_vqa", "--model-path", str(run.folder / "finetune_lora")],
            ["--image-folder", str(world / "images"), "--question-file", str(world / f"questions{suffix}.jsonl")],
            ["--answers-file", str(run.folder / f"answers{suffix}.jsonl")],
            ["--temperature", "0", "--max-new-tokens", "16", "--batch-size", "32"],
        )


def show(runs: list[Run], world: Path, output: Path) -> None:
    """Prints the table and writes the pictures."""
    from llava_sp.playground.pictures import draw_losses, draw_samples  # matplotlib is for those who draw

    annotations = world / "annotations.jsonl"
    scores = {run: score_answers(_answers(run), annotations) for run in runs}
    controls = {run: score_answers(_answers(run, "_wrong_image"), annotations) for run in runs}
    out(score_table(scores, controls))
    samples, losses = output / "samples.png", output / "losses.png"
    chosen = choose_samples(runs, world)
    draw_samples(chosen, world / "images", samples)
    draw_losses({f"{run.name}/{stage}": _loss_curve(run.folder / stage) for run in runs for stage in STAGES}, losses)
    write_json(
        output / "results.json",
        {run.name: {score.task: round(score.accuracy, 4) for score in scores[run]} for run in runs},
    )
    out("\nthree held-out questions:")
    for sample in chosen:
        answers = "; ".join(f"{run} answers {text!r}" for run, text in sample["answers"].items())
        out(f"  {sample['image']}: {sample['text']} truth {sample['truth']!r}; {answers}")
    out("\nwhere everything lies:")
    out(f"  images, captions, questions  {world}")
    for run in runs:
        out(f"  {run.name:<28} {run.folder}/{{pretrain,finetune_lora,answers.jsonl}}")
    for what, path in (("samples", samples), ("loss curves", losses), ("scores", output / "results.json")):
        out(f"  {what:<28} {path}")
    model, image = runs[0].folder / "finetune_lora", world / "images" / chosen[0]["image"]
    out("\nask it something yourself:")
    out(f"  python -m llava_sp.eval.run_llava --model-path {model} --image-file {image} --query {chosen[0]['text']!r}")


def score_table(scores: dict[Run, list[TaskScore]], controls: dict[Run, list[TaskScore]]) -> str:
    """Lays accuracies out side by side: a row a task, a column a model, beside what needs no image.

    A model of one seed has the 95% interval of its questions beside it, one of several seeds their standard deviation.
    """
    seeds: dict[str, list[Run]] = {}
    for run in scores:
        seeds.setdefault(run.variant, []).append(run)
    several = len(scores) > len(seeds)

    def cell(scores_of: dict[Run, list[TaskScore]], runs: list[Run], row: int) -> str:
        found = [scores_of[run][row] for run in runs]
        shares = [score.accuracy for score in found]
        spread = stdev(shares) if len(shares) > 1 else found[0].margin
        return f"{100 * mean(shares):>12.1f} +-{100 * spread:>5.1f}"

    heads = [f"{variant}, {len(runs)} seeds" if several else runs[0].name for variant, runs in seeds.items()]
    lines = [f"{'task':<10}{'questions':>10}{'chance':>8}{'commonest':>11}" + "".join(f"{head:>20}" for head in heads)]
    for row, facts in enumerate(next(iter(scores.values()))):
        lines.append(
            f"{facts.task:<10}{facts.count:>10}{100 * facts.chance:>8.1f}{100 * facts.commonest:>11.1f}"
            + "".join(cell(scores, runs, row) for runs in seeds.values())
        )
    lines.append(f"{'mean, with another image':<39}" + "".join(cell(controls, runs, -1) for runs in seeds.values()))
    spread = "mean over the seeds, +- their standard deviation" if several else "+- half the 95% interval"
    lines.append(f"accuracy in percent on unseen scenes and unseen handwriting, {spread};")
    lines.append("commonest: always giving the commonest answer of a question's form")
    return "\n".join(lines)


def choose_samples(runs: list[Run], world: Path) -> list[dict[str, Any]]:
    """Returns the first question of three tasks, each about another image, with every run's answer."""
    truths = _by_id(world / "annotations.jsonl", "answer")
    answers = {run.name: _by_id(_answers(run), "text") for run in runs}
    chosen: dict[str, dict[str, Any]] = {}
    for question in read_json_lines(world / "questions.jsonl", ("question_id", "image", "text", "category")):
        if question["category"] in chosen or question["image"] in {sample["image"] for sample in chosen.values()}:
            continue
        key = question["question_id"]
        chosen[question["category"]] = {
            "image": question["image"],
            "text": question["text"],
            "truth": truths[key],
            "answers": {name: given[key] for name, given in answers.items()},
        }
    return list(chosen.values())[:3]


def count_processes() -> int:
    """Returns how many ranks to start: a number that divides the global batch, at most one a GPU, or two on CPUs."""
    available = torch.cuda.device_count() or min(2, os.cpu_count() or 1)
    return max(count for count in range(1, available + 1) if GLOBAL_BATCH % count == 0)


def _step(*words: list[str]) -> None:
    command = [sys.executable, "-m", *(word for group in words for word in group)]
    out(f"$ python {' '.join(command[1:])}")
    if subprocess.run(command, check=False, env={**os.environ, LAUNCHER: str(os.getpid())}).returncode:
        raise UserError("The step above failed, see its message. Once that is mended, the same command goes on there.")


def _title(text: str) -> None:
    out(f"\n== {text}")


def _answers(run: Run, suffix: str = "") -> Path:
    return run.folder / f"answers{suffix}.jsonl"


def _by_id(path: Path, key: str) -> dict[str, str]:
    """Returns one value of each line of a file, by question."""
    return {line["question_id"]: line[key] for line in read_json_lines(path, ("question_id", key))}


def _loss_curve(checkpoint: Path) -> list[tuple[int, float]]:
    history = read_json(checkpoint / "trainer_state.json")["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m llava_sp.playground quickstart`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variant", choices=VARIANTS, default="cropping", help="the model (default: %(default)s)")
    which.add_argument("--compare", action="store_true", help="all three models, side by side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train with (default: 0)")
    add = parser.add_argument
    add("--world", type=Path, default="playground/world", help="folder of the tiny world (default: %(default)s)")
    add("--output", type=Path, default="playground/runs", help="folder of the runs (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llava_sp.playground quickstart`."""
    if not Path("configs/train/tiny_pretrain.yaml").exists():
        raise UserError("configs/train/tiny_pretrain.yaml is not here; run this from the root of the repository.")
    quickstart(args.world, args.output, list(VARIANTS) if args.compare else [args.variant], args.seeds)
