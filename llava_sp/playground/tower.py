"""Trains the tiny CLIP tower on regions: the patches of each thing learn its phrase, such as "red circle".

The logits are CLIP's, cosine similarities of image and text features times a learnt scale, but of single patches rather
than whole images: on a CPU's budget this teaches far more than the contrast of whole captions. LLaVA reads the layer
before the last one, so that layer is trained as well as the last.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_sp.constants import IGNORE_INDEX
from llava_sp.playground.scenes import COLOURS, DIGITS, SHAPES, SIZE, Box, Thing, draw

PATCH = 6
GRID = SIZE // PATCH
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of red, green, blue between 0 and 1
STD = (0.26862954, 0.26130258, 0.27577711)

NAMES = (*SHAPES, *DIGITS)
WORDS = (*COLOURS, *NAMES)
PHRASES = [(colour, name) for colour in COLOURS for name in NAMES]
NOTHING = len(PHRASES)  # the label of a patch of background


@dataclass(frozen=True)
class TowerRecipe:
    """How the tower is trained.

    Attributes:
        warp: How much the training handwriting is bent, see `draw`; there are few writers.
    """

    seed: int = 0
    steps: int = 2200
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warp: float = 1.0


def tower_config() -> CLIPVisionConfig:
    """Returns the tower's shape: 0.56 M parameters."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_range=0.1,
        initializer_factor=1.5,
    )


@torch.no_grad()
def start_local(tower: CLIPVisionModel) -> None:
    """Makes a new tower's patches look at their neighbours first: small data would take long to teach it that.

    The position embeddings become sines and cosines of both coordinates, and keys equal queries, so that attention
    falls off with distance (after "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828).
    """
    model = getattr(tower, "vision_model", tower)  # transformers before 5.20 has one more level
    frequencies = torch.logspace(math.log10(math.pi / 12), math.log10(math.pi / 1.5), tower.config.hidden_size // 4)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    model.embeddings.position_embedding.weight[1:] = 0.7 * waves
    for layer in model.encoder.layers:
        layer.self_attn.q_proj.weight.normal_(std=0.08)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


class RegionContrast(nn.Module):
    """A tower and a phrase encoder that meet in one space."""

    def __init__(self, tower: CLIPVisionModel):
        super().__init__()
        width = tower.config.projection_dim
        self.tower = tower
        self.heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, width, bias=False) for _ in range(2))
        self.words = nn.Embedding(len(WORDS), width)
        self.nothing = nn.Parameter(torch.randn(1, width))
        self.text = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        word_ids = [[WORDS.index(colour), WORDS.index(name)] for colour, name in PHRASES]
        self.register_buffer("phrase_words", torch.tensor(word_ids), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compares patches with phrases.

        Args:
            pixel_values: [B, 3, SIZE, SIZE].

        Returns:
            Logits [2, B, N, phrases + 1] of the layer before the last and of the last.
        """
        output = self.tower(pixel_values, output_hidden_states=True)
        layers = (output.hidden_states[-2], output.last_hidden_state)
        patches = torch.stack([head(layer[:, 1:]) for head, layer in zip(self.heads, layers, strict=True)])
        phrases = self.text(torch.cat([self.words(self.phrase_words).sum(1), self.nothing]))
        scale = self.scale.exp().clamp(max=100)
        return scale * functional.normalize(patches, dim=-1) @ functional.normalize(phrases, dim=-1).T


def sample_board(rng: np.random.Generator) -> tuple[Thing, ...]:
    """Fills the nine places, two thirds with digits, some not at all: more to learn from than a scene has."""
    names = rng.choice(["", *NAMES], 9, p=[0.12] + 3 * [0.08] + 10 * [0.064])
    colours = rng.choice(list(COLOURS), 9)
    return tuple(
        Thing(str(name), str(colour), *divmod(place, 3))
        for place, (name, colour) in enumerate(zip(names, colours, strict=True))
        if name
    )


def covered_patches(box: Box) -> NDArray[np.bool_]:
    """Returns which patches [GRID, GRID] a box covers by more than half on both axes."""
    starts = np.arange(GRID) * PATCH
    left, top, right, bottom = box
    columns = np.minimum(right, starts + PATCH) - np.maximum(left, starts) > PATCH / 2
    rows = np.minimum(bottom, starts + PATCH) - np.maximum(top, starts) > PATCH / 2
    return rows[:, None] & columns[None, :]


def pixel_values(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalises an image [SIZE, SIZE, 3] as CLIP does -> [3, SIZE, SIZE]."""
    return ((image / np.float32(255) - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(2, 0, 1)


def labelled_board(split: str, rng: np.random.Generator, warp: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draws a board.

    Returns:
        Its pixel values [3, SIZE, SIZE] and the phrase of each patch [N]; a patch that a thing barely touches has none.
    """
    things = sample_board(rng)
    image, boxes = draw(things, split, rng, warp)
    labels = np.full((GRID, GRID), NOTHING)
    for thing, (left, top, right, bottom) in zip(things, boxes, strict=True):
        labels[top // PATCH : -(-bottom // PATCH), left // PATCH : -(-right // PATCH)] = IGNORE_INDEX
        labels[covered_patches((left, top, right, bottom))] = PHRASES.index((thing.colour, thing.name))
    return pixel_values(np.asarray(image)), labels.reshape(-1)


def train_tower(recipe: TowerRecipe, split: str) -> CLIPVisionModel:
    """Trains a tower from scratch on boards with a split's handwriting."""
    torch.manual_seed(recipe.seed)
    tower = CLIPVisionModel(tower_config())
    start_local(tower)
    model = RegionContrast(tower)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.05)
    rng = np.random.default_rng(recipe.seed)
    progress = trange(recipe.steps, desc="vision tower")
    for _ in progress:
        boards = [labelled_board(split, rng, recipe.warp) for _ in range(recipe.batch_size)]
        pixels = torch.from_numpy(np.stack([board[0] for board in boards]))
        labels = torch.from_numpy(np.stack([board[1] for board in boards]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixels)
        loss = functional.cross_entropy(logits.float().flatten(0, 2), labels.repeat(2, 1).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return tower.eval()


@torch.no_grad()
def board_features(
    tower: CLIPVisionModel, split: str, boards: int, seed: int
) -> tuple[NDArray[np.float32], list[Thing]]:
    """Draws boards and returns what LLaVA reads of each thing on them.

    Returns:
        The mean over a thing's patches of the layer before the last, [things, C], and the things.
    """
    rng = np.random.default_rng(seed)
    features: list[NDArray[np.float32]] = []
    all_things: list[Thing] = []
    for _ in range(boards):
        things = sample_board(rng)
        image, boxes = draw(things, split, rng)
        pixels = torch.from_numpy(pixel_values(np.asarray(image)))[None]
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:].numpy()
        features += [patches[covered_patches(box).reshape(-1)].mean(0) for box in boxes]
        all_things += things
    return np.stack(features), all_things
