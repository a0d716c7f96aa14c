"""Pixels are LLaVA's, whatever the shape of the image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from llava_sp import LlavaSPImageProcessor
from llava_sp.model.image_processing_llava_sp import pad_to_square
from llava_sp.model.tiles import TileLayout, default_pinpoints
from llava_sp.utils.errors import UserError

RECORDINGS = Path(__file__).parent.parent / "fixtures" / "images_of_llava.safetensors"
SIDE = 336


def formula_image(width: int, height: int) -> Image.Image:
    """The recorded images are a formula of the position."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = 255 * x // width
    pixels[..., 1] = 255 * y // height
    pixels[..., 2] = 200 * ((x // 9 + y // 9) % 2)
    return Image.fromarray(pixels)


def clip_processor(image_aspect_ratio: str, side: int = SIDE) -> LlavaSPImageProcessor:
    return LlavaSPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_aspect_ratio=image_aspect_ratio,
        image_grid_pinpoints=default_pinpoints(side) if image_aspect_ratio == "anyres" else None,
    )


@pytest.mark.parametrize("size", ["336x336", "640x480"])
@pytest.mark.parametrize("mode", ["square", "pad", "anyres"])
def test_pixels_are_those_of_llava(mode, size):
    width, height = map(int, size.split("x"))
    with safe_open(RECORDINGS, "pt") as file:
        theirs = file.get_tensor(f"{mode}_{size}")
    ours = clip_processor(mode)(formula_image(width, height), return_tensors="pt")["pixel_values"][..., ::12, ::12]
    ours = ours[0] if mode == "anyres" else ours
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width,height", [(5, 2), (2, 5), (4, 4), (1, 6)])
def test_padding_centres_the_image_on_the_mean_colour(width, height):
    image = np.arange(3 * width * height, dtype=np.uint8).reshape(3, height, width)
    square = pad_to_square(image, [0.5, 0.25, 1.0])
    side = max(width, height)
    assert square.shape == (3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    assert (square[:, top : top + height, left : left + width] == image).all()
    outside = np.ones((side, side), dtype=bool)
    outside[top : top + height, left : left + width] = False
    assert (square[:, outside] == np.array([[127], [63], [255]])).all()


@pytest.mark.parametrize(
    "width,height",
    [(96, 48), (48, 144), (90, 70), (70, 90), (7, 5), (1, 1), (1, 300), (300, 2), (49, 48), (97, 95), (333, 111)],
)
def test_tiles_are_cut_from_the_image_in_its_own_proportions(width, height):
    """By PIL alone: resized to lie inside the grid, rounded up, on black."""
    side, image = 48, formula_image(width, height)
    rows, columns = TileLayout(default_pinpoints(side), "flat", side, 12, 6).tiles(height, width)
    scale = min(columns * side / width, rows * side / height)
    size = [min(math.ceil(length * scale), limit * side) for length, limit in ((width, columns), (height, rows))]
    if columns * side / width < rows * side / height:
        size[0] = columns * side
    else:
        size[1] = rows * side
    canvas = Image.new("RGB", (columns * side, rows * side))
    canvas.paste(image.resize(size), ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2))
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    views = [image.resize((side, side)), *(canvas.crop((x, y, x + side, y + side)) for x, y in corners)]
    ours = clip_processor("anyres", side)(image, return_tensors="pt")
    assert ours["image_sizes"].tolist() == [[height, width]]
    expected = clip_processor("square", side)(views, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours["pixel_values"][0], expected, atol=1e-6, rtol=0)


def test_anyres_without_grids_is_refused():
    with pytest.raises(UserError, match="needs image_grid_pinpoints"):
        clip_processor("square")(formula_image(9, 9), image_aspect_ratio="anyres")


@pytest.mark.parametrize("mode", ["pad", "anyres"])
def test_saving_keeps_the_aspect_ratio_and_the_grids(mode, tmp_path):
    clip_processor(mode).save_pretrained(tmp_path)
    loaded = LlavaSPImageProcessor.from_pretrained(tmp_path)
    assert loaded.image_aspect_ratio == mode
    assert loaded.image_grid_pinpoints == clip_processor(mode).image_grid_pinpoints
