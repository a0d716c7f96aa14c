"""Pixels are LLaVA's, whatever the shape of the image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from llava_sp import LlavaSPImageProcessor
from llava_sp.model.image_processing_llava_sp import pad_to_square

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


def clip_processor(image_aspect_ratio: str) -> LlavaSPImageProcessor:
    return LlavaSPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_aspect_ratio=image_aspect_ratio,
    )


@pytest.mark.parametrize("name", ["square_336x336", "square_640x480", "pad_336x336", "pad_640x480"])
def test_pixels_are_those_of_llava(name):
    mode, size = name.split("_")
    width, height = map(int, size.split("x"))
    with safe_open(RECORDINGS, "pt") as file:
        theirs = file.get_tensor(name)
    ours = clip_processor(mode)(formula_image(width, height), return_tensors="pt")["pixel_values"][..., ::12, ::12]
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


def test_saving_keeps_the_aspect_ratio(tmp_path):
    clip_processor("pad").save_pretrained(tmp_path)
    assert LlavaSPImageProcessor.from_pretrained(tmp_path).image_aspect_ratio == "pad"
