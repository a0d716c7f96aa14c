"""What the tiny base models must know before they are worth shipping, measured on held-out scenes and handwriting."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPVisionModel, LlamaForCausalLM

from llava_sp.constants import IGNORE_INDEX
from llava_sp.playground.language import held_out_questions
from llava_sp.playground.language_model import GRID, TextWorld, embed
from llava_sp.playground.scenes import HELD_OUT, TRAIN, generator, sample_scene
from llava_sp.playground.tower import board_features

LLM_GATE = 0.95  # of every task, from a sentence that says all
TOWER_GATES = {"digit": 0.93, "shape": 0.98, "colour": 0.98}
_SEED = 1  # of the scenes; training has its own
_BATCH = 50


@torch.no_grad()
def llm_accuracy(llm: LlamaForCausalLM, tokenizer: Any, scenes: int, by_patch: bool) -> dict[str, float]:
    """Asks the LLM one question of each task about each of some written scenes.

    Args:
        llm: The LLM.
        tokenizer: Its tokenizer from `llava_sp.model.parts.load_tokenizer`.
        scenes: Number of scenes.
        by_patch: Whether descriptions have a word for each patch, rather than being a sentence.

    Returns:
        For each task the share of answers that are right to the last token, the end included.
    """
    world, samples, tasks = TextWorld(tokenizer), [], []
    for index in range(scenes):
        rng = generator(_SEED, HELD_OUT, index)
        things = sample_scene(rng)
        description = world.patches(things, GRID) if by_patch else world.sentence(things)
        for question in held_out_questions(things, rng, present=index % 2 == 0):
            samples.append(world.question(question, description))
            tasks.append(question.task)
    right = defaultdict(list)
    for start in range(0, len(samples), _BATCH):
        embeddings, labels = embed(llm, samples[start : start + _BATCH])
        best = llm(inputs_embeds=embeddings).logits[:, :-1].argmax(-1)
        expected = labels[:, 1:]
        hits = ((best == expected) | (expected == IGNORE_INDEX)).all(1)
        for task, hit in zip(tasks[start : start + _BATCH], hits.tolist(), strict=True):
            right[task].append(hit)
    return {task: float(np.mean(hits)) for task, hits in right.items()}


def tower_accuracy(tower: CLIPVisionModel, train_boards: int, held_out_boards: int) -> dict[str, float]:
    """Fits linear probes to the features that LLaVA reads, and tries them on held-out boards and handwriting.

    Args:
        tower: The vision tower.
        train_boards: Number of boards with training handwriting to fit the probes to.
        held_out_boards: Number of boards with held-out handwriting to measure on.

    Returns:
        The shares of right "digit", "shape" and "colour".
    """
    known, known_things = board_features(tower, TRAIN, train_boards, _SEED)
    unknown, things = board_features(tower, HELD_OUT, held_out_boards, _SEED)
    names = _probe(known, [t.name for t in known_things], unknown) == np.array([t.name for t in things])
    colours = _probe(known, [t.colour for t in known_things], unknown) == np.array([t.colour for t in things])
    digits = np.array([thing.is_digit for thing in things])
    return {
        "digit": float(names[digits].mean()),
        "shape": float(names[~digits].mean()),
        "colour": float(colours.mean()),
    }


def _probe(features: NDArray[np.float32], labels: list[str], unknown: NDArray[np.float32]) -> NDArray[np.str_]:
    """Fits a ridge regression to one-hot labels, and returns the labels that it gives to unknown features."""
    classes, codes = np.unique(labels, return_inverse=True)
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x = np.c_[(features - mean) / scale, np.ones(len(features))]
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ np.eye(len(classes))[codes])
    return classes[(np.c_[(unknown - mean) / scale, np.ones(len(unknown))] @ weights).argmax(1)]
