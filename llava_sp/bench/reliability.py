"""Measures what it costs that runs survive: the guards in a step, and the sealing of a checkpoint, each in one run.

Steps: the tiny world's parts train on images of noise, all samples alike, with the guards on in every other step.
Checkpoints: stage 1 with a projector so large that its checkpoint has the size asked for. A thread hashes it and waits
for the disk while the training goes on; here the training waits for it after each, to tell how long it takes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from llava_sp.model.parts import configure, load_tokenizer
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.playground import BASE
from llava_sp.train import checkpoint, saving, trainer
from llava_sp.train.callbacks import RunCallback
from llava_sp.train.quarantine import Quarantine
from llava_sp.train.run import train
from llava_sp.train.runtime import training_command
from llava_sp.train.signals import StopSignals
from llava_sp.train.trainer import LlavaSPTrainer
from llava_sp.train.watchdog import Watchdog
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.manifest import hash_files
from llava_sp.utils.ranks import is_main, run_torchrun, world_size

GUARDS: list[tuple[Any, str]] = [
    (trainer, "agree"),
    (Quarantine, "note"),
    (RunCallback, "watch_loss"),
    (StopSignals, "agreed"),
    (Watchdog, "beat"),
]
"""What a step does to notice that something is wrong."""

CHANNELS = 64
"""Channels of a spatial token, as in the tiny world's models."""

WARM_UP = 4
"""Steps, or checkpoints, that do not count."""


def main(arguments: list[str]) -> None:
    """Measures steps, then checkpoints."""
    options = parse(arguments)
    if options.rank:
        training_command(lambda: measure(Path(options.rank), options))()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        make_data(Path(name))
        for what, ranks in (("steps", options.ranks), ("checkpoints", 1)):
            if getattr(options, what):
                words = ["-m", "llava_sp.bench", "reliability", *arguments, "--rank", name, "--what", what]
                code = run_torchrun([f"--nproc_per_node={ranks}", "--standalone", *words], mend="")
                if code:
                    sys.exit(code)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the benchmark's flags."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.bench reliability", description=summary(__doc__))
    add = parser.add_argument
    add("--steps", type=int, default=200, help="optimizer steps, half of them guarded (default: %(default)s)")
    add("--ranks", type=int, default=2, help="processes of these steps, under ZeRO-2 (default: %(default)s)")
    add("--checkpoints", type=int, default=8, help="checkpoints (default: %(default)s)")
    add("--size", type=float, default=1.0, help="size of one in GB (default: %(default)s)")
    add("--folder", help="where files are written for the while (default: the temporary folder)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=device, help="where ranks train (default: %(default)s)")
    add("--rank", help=argparse.SUPPRESS)
    add("--what", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.steps, options.checkpoints) < 0 or options.ranks < 1 or options.size <= 0:
        raise UserError("--steps and --checkpoints must not be negative, --ranks and --size must be above 0.")
    return options


def make_data(folder: Path) -> None:
    """Writes samples that take equally long, each with an image of noise."""
    random = np.random.default_rng(0)
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red circle"}]
    for number in range(16):
        noise = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    records = [{"id": str(number), "image": f"{number % 16}.png", "conversations": turns} for number in range(4096)]
    (folder / "data.json").write_text(json.dumps(records))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Trains in this process, as one rank, and prints what was measured."""
    words = ["--model_name_or_path", str(BASE / "llm"), "--vision_tower", str(BASE / "vision_tower")]
    words += ["--data_path", str(folder / "data.json"), "--image_folder", str(folder), "--output_dir"]
    words += [str(folder / options.what), "--disable_tqdm", "True", "--logging_steps", "1000", "--check_data", "off"]
    words += ["--use_cpu"] if options.device == "cpu" else []
    if options.what == "steps":
        words += ["--lora_enable", "True", "--lora_r", "8", "--sfe_channels", str(CHANNELS), "--save_strategy", "no"]
        words += ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "1"]
        words += ["--deepspeed", "configs/zero2.json", "--max_steps", str(options.steps + WARM_UP)]
        measure_steps(words)
    else:
        words += ["--tune_mm_mlp_adapter", "True", "--sfe_channels", str(channels_for(options.size))]
        words += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--save_total_limit", "1"]
        words += ["--save_steps", "1", "--max_steps", str(options.checkpoints + WARM_UP)]
        measure_checkpoints(words)


def measure_steps(words: list[str]) -> None:
    """Trains with the guards on in every other step, and prints what they add to its time."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    began, guarded, fetch = 0.0, True, LlavaSPTrainer.get_batch_samples

    def switched(guard: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: guard(*arguments, **named) if guarded else None

    def timed(self: LlavaSPTrainer, *arguments: Any) -> Any:
        nonlocal began, guarded
        now = time.perf_counter()
        if self.state.global_step > WARM_UP:
            seconds[guarded].append(now - began)
        began, guarded = now, not guarded
        return fetch(self, *arguments)

    with ExitStack() as patched:
        for owner, name in GUARDS:
            patched.enter_context(patch.object(owner, name, switched(getattr(owner, name))))
        patched.enter_context(patch.object(LlavaSPTrainer, "get_batch_samples", timed))
        train(words, ranks=world_size())
    plain, guarded_time = (statistics.median(seconds[on]) for on in (False, True))
    counts = f"{len(seconds[False])} without the guards, {len(seconds[True])} with"
    report(
        f"a step of {world_size()} ranks ({counts}; medians)",
        {"without": plain, "with": guarded_time, "the guards": guarded_time - plain},
    )


def measure_checkpoints(words: list[str]) -> None:
    """Trains and saves after each step; prints how long the training waits, what for, and what is done beside it.

    Every other checkpoint is completed beside the next step, to see how much longer that takes.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    step, save, size = LlavaSPTrainer.training_step, LlavaSPTrainer._save_checkpoint, 0

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = work(*arguments, **named)
            seconds[name].append(time.perf_counter() - began)
            return result

        return run

    def saved(self: LlavaSPTrainer, *arguments: Any) -> None:
        nonlocal size
        self.settle()
        timed("saving", save)(self, *arguments)
        if len(seconds["saving"]) % 2:
            return
        self.settle()
        files = [file for file in checkpoint.checkpoints(Path(self.args.output_dir))[-1].rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        timed("hashing", hash_files)(files)

    def stepped(self: LlavaSPTrainer, *arguments: Any) -> Any:
        beside = self._sealed is not None and not self._sealed.done()
        return timed("step beside it" if beside else "step", step)(self, *arguments)

    with ExitStack() as patched:
        patched.enter_context(patch.object(LlavaSPTrainer, "_save_checkpoint", saved))
        patched.enter_context(patch.object(LlavaSPTrainer, "training_step", stepped))
        for name, owner, work in (
            ("checking", saving, "all_finite"),
            ("completing", checkpoint, "complete"),
            ("sealing", checkpoint, "seal"),
        ):
            patched.enter_context(patch.object(owner, work, timed(name, getattr(owner, work))))
        train(words, ranks=1)
    middle = {name: statistics.median(times[WARM_UP // 2 :]) for name, times in seconds.items()}
    report(
        f"a checkpoint of {size / 1e9:.3g} GB ({len(seconds['saving']) - WARM_UP // 2}; medians)",
        {
            "the training waits": middle["saving"],
            "  are weights finite": middle["checking"],
            "meanwhile, beside it": middle["completing"],
            "  hash, disk, manifest": middle["sealing"],
            "  hashing alone": middle["hashing"],
        },
    )
    rows = {"alone": middle["step"]}
    if "step beside it" in middle:  # else they are through before it begins
        rows["beside a completion"] = middle["step beside it"]
    report("forward and backward pass (medians)", rows)


def report(title: str, rows: dict[str, float]) -> None:
    """Prints times, and what share of the first one each is."""
    if is_main():
        first = next(iter(rows.values()))
        out("\n".join([title, *(f"  {n:<22} {1000 * s:>9.2f} ms {100 * s / first:>8.2f}%" for n, s in rows.items())]))


def channels_for(size: float) -> int:
    """Returns the channels of a spatial token with which stage 1 saves checkpoints of about so many GB."""
    channels = CHANNELS
    while 12 * count_parameters(channels) < size * 1e9:  # fp32 weights and two moments
        channels += CHANNELS
    return channels


def count_parameters(channels: int) -> int:
    """Counts the projector's parameters at a width of the spatial tokens."""
    llm, tower = str(BASE / "llm"), str(BASE / "vision_tower")
    config = configure(llm, tower, load_tokenizer(llm), overrides={"sfe_channels": channels})
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LlavaSPProjector(config).parameters())
