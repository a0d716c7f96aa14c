"""Builds the tiny base models: a tokenizer, an LLM trained on text alone, and a vision tower trained with phrases."""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from llava_sp.model.parts import load_tokenizer
from llava_sp.playground.gates import LLM_GATE, TOWER_GATES, llm_accuracy, tower_accuracy
from llava_sp.playground.language import TASKS
from llava_sp.playground.language_model import LanguageModelRecipe, llm_config, train_llm
from llava_sp.playground.scenes import SIZE, TRAIN
from llava_sp.playground.tokenizer import train_tokenizer
from llava_sp.playground.tower import MEAN, STD, TowerRecipe, train_tower
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import sha256_file, write_json

LLM, TOWER = "llm", "vision_tower"
SENTENCE, BY_PATCH = "llm, from a sentence", "llm, from words by patch"
RECIPE = "recipe.json"


def build_base(output: Path, seed: int) -> dict[str, Any]:
    """Trains the base models, measures them, and writes them with their recipe.

    Args:
        output: Folder to write: absent or empty.
        seed: Seed of everything.

    Returns:
        What the recipe file says: the recipes, the figures, the versions, the files' hashes.

    Raises:
        UserError: `output` holds something, or a model misses its gate (it is written all the same).
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty; name another --output.")
    start = time.monotonic()
    llm_recipe, tower_recipe = LanguageModelRecipe(seed=seed), TowerRecipe(seed=seed)
    # Side by side and one thread each: faster than one after the other, and the same sums on every machine.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = (
            pool.submit(_build_llm, output / LLM, llm_recipe),
            pool.submit(_build_tower, output / TOWER, tower_recipe),
        )
        measured = {name: shares for job in jobs for name, shares in job.result().items()}
    recipe = {
        "command": f"python -m llava_sp.playground build-base --seed {seed} --output DIR",
        "minutes": round((time.monotonic() - start) / 60, 1),
        "measured": measured,
        "llm": asdict(llm_recipe),
        "vision_tower": asdict(tower_recipe),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": hashes(output),
    }
    write_json(output / RECIPE, recipe)
    check_gates(measured)
    return recipe


def check_gates(measured: dict[str, dict[str, float]]) -> None:
    """Compares measured shares with what the models must reach.

    Raises:
        UserError: One is too low; the message names it.
    """
    gates = {SENTENCE: dict.fromkeys(TASKS, LLM_GATE), TOWER: TOWER_GATES}
    for name, thresholds in gates.items():
        for what, gate in thresholds.items():
            share = measured[name][what]
            if share < gate:
                raise UserError(
                    f"{name}: {what} reaches {share:.1%}, below the gate of {gate:.0%}; raise the recipe's steps."
                )


def hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of both models, by its path in their common folder."""
    files = (path for name in (LLM, TOWER) for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(files)}


def _build_llm(folder: Path, recipe: LanguageModelRecipe) -> dict[str, dict[str, float]]:
    folder.mkdir(parents=True)
    vocabulary = train_tokenizer(folder, recipe.seed)
    llm_config(vocabulary).save_pretrained(folder)  # AutoTokenizer asks for it
    tokenizer = load_tokenizer(str(folder))
    llm = train_llm(recipe, tokenizer)
    llm.save_pretrained(folder)
    return {
        SENTENCE: llm_accuracy(llm, tokenizer, scenes=500, by_patch=False),
        BY_PATCH: llm_accuracy(llm, tokenizer, scenes=500, by_patch=True),
    }


def _build_tower(folder: Path, recipe: TowerRecipe) -> dict[str, dict[str, float]]:
    tower = train_tower(recipe, TRAIN)
    tower.save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    write_json(folder / "preprocessor_config.json", settings)
    return {TOWER: tower_accuracy(tower, train_boards=1500, held_out_boards=500)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m llava_sp.playground build-base`."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write, absent or empty")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llava_sp.playground build-base`."""
    recipe = build_base(args.output, args.seed)
    out(f"Built the base models in {args.output} in {recipe['minutes']} minutes. Right on held-out scenes:")
    for name, shares in recipe["measured"].items():
        out(f"  {name}: " + ", ".join(f"{what} {share:.1%}" for what, share in shares.items()))
