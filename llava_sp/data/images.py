"""The one place that opens images, which come from data and requests that nobody has vetted."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from llava_sp.constants import MAX_PIXELS
from llava_sp.data.problems import Problem, SampleError
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import resolve_inside

PngImagePlugin.MAX_TEXT_MEMORY = 16 * 2**20  # bytes of a PNG's texts, unpacked; Pillow's own limit is 64 MiB

MAX_SIDE = 10_000
"""Longest side in pixels: padded to a square, an image of that side takes 300 MB, and copies of it as much again."""

MAX_RATIO = 200
"""Longest side over shortest: resized until the shortest is 336 pixels, the longest is then 67,200."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more, some of which start other programs (EPS) or are read by hardly tested code."""

# What Pillow has to say of large images is told by the error on them, and of palettes that RGB has no transparency.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", module="PIL")


def load_image(root: str | Path, relative: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image that a data file names, as LLaVA does: converted to RGB, not rotated by its EXIF orientation.

    Transparency is dropped, so that the colours beneath it show, as in LLaVA too. Only greys of 16 bits differ: there
    LLaVA gets white from all but the darkest.

    Args:
        root: The image folder.
        relative: The image's path inside it, as the data file has it.
        max_pixels: Limit of width x height, checked from the file's header before anything is decoded.

    Returns:
        The decoded image, RGB; its file is closed.

    Raises:
        SampleError: The path leads out of the folder, or the file is missing, corrupt, not an image, too large, or does
            not tell what is white; the message names the file.
    """
    path, name = _find(root, relative)
    return decode_image(path, name, max_pixels)


def decode_image(source: Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file, or its bytes, as `load_image` does.

    Args:
        source: Path of the file, or its content.
        name: What errors call it; they begin with it.
        max_pixels: Limit of width x height.

    Raises:
        SampleError: It is corrupt, not an image, too large, or does not tell what is white.
    """
    with _opened(source, name, max_pixels) as image:
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decodes and converts an image; where Pillow would cut values off at 255, it keeps the upper 8 bits."""
    # That is what Pillow itself makes of 16 bits in colour. PGM files with more than 8 it scales to 16, in mode I.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its 32 bits a pixel do not tell what is white; convert it to 8 bits")
    return image.convert("RGB")


def image_size(root: str | Path, relative: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Reads the height and width that `load_image` would return from the file's header; nothing is decoded.

    Raises:
        SampleError: As for `load_image`.
    """
    path, name = _find(root, relative)
    with _opened(path, name, max_pixels) as image:
        return image.height, image.width


def _find(root: str | Path, relative: str) -> tuple[Path, str]:
    """Returns an image's path, and what errors call it."""
    try:
        path = resolve_inside(root, relative)
    except UserError as error:
        raise SampleError(Problem.IMAGE_OUTSIDE, str(error)) from None
    try:
        if not path.is_file():
            raise SampleError(Problem.IMAGE_MISSING, f"The image {path} does not exist.")
        return path, f"The image {path} ({path.stat().st_size} bytes)"
    except OSError as error:  # its folder may not be entered, or the disk fails
        raise SampleError(Problem.IMAGE_MISSING, f"The image {path} cannot be read: {error.strerror}.") from None


@contextmanager
def _opened(source: Path | BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image that is not too large; what its decoder raises meanwhile becomes a `SampleError`."""
    try:
        # Given a path, Pillow maps some files into memory: damage then comes out otherwise than from the same bytes,
        # and a file that is cut meanwhile ends the process.
        opened = source.open("rb") if isinstance(source, Path) else nullcontext(source)
        with opened as file, Image.open(file, formats=FORMATS) as image:
            excess = _excess(*image.size, max_pixels)
            if not excess:
                yield image
                return
    except Image.DecompressionBombError:  # Pillow's own limit, from the header as well
        excess = f"has far too many pixels; at most {max_pixels:,} are decoded"
    except Exception as error:  # decoders raise anything on corrupt bytes: SyntaxError, struct.error, IndexError, ...
        what = "it is no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise SampleError(Problem.IMAGE_CORRUPT, f"{name} cannot be decoded: {what}.") from error
    raise SampleError(Problem.IMAGE_TOO_LARGE, f"{name} {excess}. Shrink it, or drop it.")


def _excess(width: int, height: int, max_pixels: int) -> str:
    """Says by what an image of this size is too large to decode, or for what becomes of it; "" if by nothing."""
    size = f"has {width} x {height} pixels"
    if width * height > max_pixels:
        return f"{size}; at most {max_pixels:,} are decoded"
    if max(width, height) > MAX_SIDE:
        return f"{size}; no side may be longer than {MAX_SIDE:,}"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{size}; no side may be more than {MAX_RATIO} times the other"
    return ""
