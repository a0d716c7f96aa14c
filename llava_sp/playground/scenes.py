"""The tiny world's scenes: real handwritten digits and coloured shapes on a 3 x 3 board, 72 x 72 pixels.

The digits are the UCI set that scikit-learn bundles (8 x 8 grey values, no download). It is ordered by writer, so the
last fifth, kept for held-out scenes, is handwriting that no training scene shows.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 72  # pixels a side: 12 x 12 patches of 6
CELL = 24  # pixels a side of one of the 3 x 3 places

PLACES = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (225, 55, 50), "green": (60, 185, 75), "blue": (70, 110, 245), "yellow": (245, 215, 60)}

TRAIN, HELD_OUT = "train", "held_out"
_SPLITS = (TRAIN, HELD_OUT)
_HELD_OUT_DIGITS = 360  # of 1797: the end of the set
_OVERSAMPLING = 4  # shapes are drawn this much larger and reduced, for smooth edges

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, half-open


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        name: A name of `SHAPES` or `DIGITS`.
        colour: A key of `COLOURS`.
        row: 0 to 2 from the top.
        column: 0 to 2 from the left.
    """

    name: str
    colour: str
    row: int
    column: int

    @property
    def is_digit(self) -> bool:
        """Whether this is a handwritten digit rather than a shape."""
        return self.name in DIGITS

    @property
    def place(self) -> str:
        """The place in a word, as on a map: "northwest" is the top left."""
        return PLACES[3 * self.row + self.column]


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Returns the random generator of one scene: it depends on nothing but these three."""
    return np.random.default_rng([seed, _SPLITS.index(split), index])


def sample_scene(rng: np.random.Generator, count: int | None = None) -> tuple[Thing, ...]:
    """Draws a scene of `count` things, else three to five, in different places, in reading order.

    No digit and no shape occurs twice, so that "the seven" and "the circle" are one thing.
    """
    count = count or int(rng.integers(3, 6))
    digits = int(rng.integers(max(1, count - len(SHAPES)), count))
    names = [*rng.choice(DIGITS, digits, replace=False), *rng.choice(SHAPES, count - digits, replace=False)]
    colours = rng.choice(list(COLOURS), count)
    places = np.sort(rng.choice(len(PLACES), count, replace=False))
    order = rng.permutation(count)
    return tuple(
        Thing(str(names[i]), str(colour), int(place) // 3, int(place) % 3)
        for i, colour, place in zip(order, colours, places, strict=True)
    )


@cache
def handwriting(split: str) -> dict[str, NDArray[np.uint8]]:
    """Returns the digit images of a split: for each name of a digit an array [count, 8, 8] of ink, 0 to 255."""
    from sklearn.datasets import load_digits  # an optional dependency that only the world needs

    images, digits = load_digits(return_X_y=True)
    chosen = slice(None, -_HELD_OUT_DIGITS) if split == TRAIN else slice(-_HELD_OUT_DIGITS, None)
    ink = np.rint(images.reshape(-1, 8, 8)[chosen] * (255 / 16)).astype(np.uint8)
    return {name: ink[digits[chosen] == digit] for digit, name in enumerate(DIGITS)}


def draw(
    things: tuple[Thing, ...], split: str, rng: np.random.Generator, warp: float = 0.0
) -> tuple[Image.Image, list[Box]]:
    """Renders a scene with random sizes, positions within the places, tints and handwriting.

    Args:
        things: The scene.
        split: Whose handwriting to use.
        rng: The scene's generator.
        warp: How much to bend the handwriting: 0 for the writers' own, 1 for as much as keeps it legible.

    Returns:
        The RGB image of `SIZE` pixels a side, and each thing's box.
    """
    background = rng.integers(15, 50, 3)
    noise = rng.integers(-6, 7, (SIZE, SIZE, 1))
    image = Image.fromarray((background + noise).clip(0, 255).astype(np.uint8), "RGB")
    boxes = []
    for thing in things:
        mask = _digit_mask(thing.name, split, rng, warp) if thing.is_digit else _shape_mask(thing.name, rng)
        left = thing.column * CELL + int(rng.integers(0, CELL - mask.width + 1))
        top = thing.row * CELL + int(rng.integers(0, CELL - mask.height + 1))
        tint = np.array(COLOURS[thing.colour]) + rng.integers(-20, 21, 3)
        red, green, blue = (int(value) for value in tint.clip(0, 255))
        image.paste((red, green, blue), (left, top), mask)
        boxes.append((left, top, left + mask.width, top + mask.height))
    return image, boxes


def _digit_mask(digit: str, split: str, rng: np.random.Generator, warp: float) -> Image.Image:
    """Returns one writer's digit, enlarged: mode "L", the ink's share of each pixel."""
    written = handwriting(split)[digit]
    side = int(rng.integers(20, 24))
    mask = Image.fromarray(written[rng.integers(len(written))], "L").resize((side, side), Image.Resampling.BICUBIC)
    return _warped(mask, rng, warp) if warp else mask


def _warped(mask: Image.Image, rng: np.random.Generator, warp: float) -> Image.Image:
    """Stretches, slants and turns a square mask about its centre, and makes its strokes thicker or thinner."""
    matrix = np.eye(2) + warp * rng.uniform(-0.25, 0.25, (2, 2))
    centre = np.full(2, mask.width / 2)
    shift = centre - matrix @ centre
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    turned = mask.transform(mask.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    gamma = np.exp(warp * rng.uniform(-0.6, 0.6))
    return turned.point([round(255 * (value / 255) ** gamma) for value in range(256)])


def _shape_mask(shape: str, rng: np.random.Generator) -> Image.Image:
    """Returns a filled shape: mode "L", its share of each pixel."""
    side = int(rng.integers(14, 21))
    large = side * _OVERSAMPLING
    mask = Image.new("L", (large, large))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, large - 1, large - 1), fill=255)
    elif shape == "square":
        margin = large // 16
        pen.rectangle((margin, margin, large - 1 - margin, large - 1 - margin), fill=255)
    else:
        pen.polygon([(0, large - 1), (large - 1, large - 1), (large // 2, 0)], fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)
