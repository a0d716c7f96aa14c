"""Whatever an image file holds: an RGB image of the size that its header tells, or one sentence; and little memory."""

import base64
import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from PIL import Image

from llava_sp.data.images import FORMATS, MAX_SIDE, decode_image, image_size, load_image
from llava_sp.data.problems import SampleError
from tests.reliability.bombs import watch_memory
from tests.reliability.strategies import fuzz

PIXELS = 1_000_000
MODES: dict[str, tuple[str, ...]] = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "GIF": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA", "L"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("1", "L", "I;16", "I", "RGB", "F"),
}
WAYS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 1}, {"comment": b"x" * 40}],
    "PNG": [{}, {"save_all": True}, {"transparency": 0}],
    "GIF": [{}, {"save_all": True}, {"transparency": 0, "interlace": 0}],
    "WEBP": [{}, {"lossless": True}, {"save_all": True}],
    "TIFF": [{"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")],
}
PLAIN = [b"P1\n3 2\n1 0 1\n0 1 0\n", b"P2 3 1 255 0 9 255\n", b"P3\n# x\n1 1 65535\n1 2 3\n", b"P4\n9 1\n\xff\x80"]


def made(kind: str, mode: str, way: dict[str, Any], size: tuple[int, int]) -> bytes | None:
    """An image file; None if the format has no such mode."""
    gradient = Image.linear_gradient("L").resize(size)
    picture = Image.merge("RGB", (gradient, gradient.rotate(180), gradient.rotate(90)))
    picture = picture.convert("L").convert(mode) if mode in ("I", "F", "I;16", "LA") else _convert(picture, mode)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "x" * 30  # rotated, described
    frames = {"append_images": [picture.rotate(180)]} if way.get("save_all") else {}
    file = io.BytesIO()
    try:
        picture.save(file, kind, **way, **frames, **({} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}))
    except (OSError, ValueError, KeyError, RuntimeError):
        return None
    return file.getvalue()


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if mode != "LAB":
        return picture.convert(mode)
    return Image.frombytes("LAB", picture.size, picture.tobytes())


def seeds() -> dict[str, list[bytes]]:
    """Files of every format, by format."""
    found: dict[str, list[bytes]] = {kind: [] for kind in FORMATS}
    for kind in FORMATS:
        for mode, way, size in itertools.product(MODES[kind], WAYS.get(kind, [{}]), ((9, 5), (40, 64))):
            if content := made(kind, mode, way, size):
                found[kind].append(content)
    found["PPM"] += PLAIN
    return found


SEEDS = seeds()
NUMBERS = [
    struct.pack(order + size, value)
    for order, size, most in ((">", "H", 2**16), ("<", "H", 2**16), (">", "I", 2**32), ("<", "I", 2**32))
    for value in (0, 1, 300, 20_000 % most, most // 2 - 1, most // 2, most - 1)
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image file with bits turned, bytes replaced, cut, moved or added, mostly near its start."""
    content = bytearray(draw(st.sampled_from(SEEDS[draw(st.sampled_from(FORMATS))])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, min(60, len(content))), st.integers(0, len(content))))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["bit", "bit", "number", "number", "cut", "drop", "double", "swap", "bytes"])):
            case "bit":
                if at < len(content):
                    content[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                content[at : at + len(number)] = number
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length] * draw(st.sampled_from([1, 1, 50]))
            case "swap":
                other = draw(st.integers(0, len(content)))
                moved = content[at : at + length]
                del content[at : at + length]
                content[other:other] = moved
            case "bytes":
                content[at:at] = draw(st.binary(max_size=8))
    return bytes(content)


def check(content: bytes, folder: Path) -> None:
    """Checks that a file is an image or refused, and that its path, its bytes and its header tell the same."""
    (folder / "a.png").write_bytes(content)
    growth = watch_memory()
    try:
        image = load_image(folder, "a.png", PIXELS)
    except SampleError as error:
        assert str(folder / "a.png") in str(error)
        image = None
    assert growth() < 100  # MiB
    if image is None:
        return
    assert image.mode == "RGB"
    assert len(image.tobytes()) == 3 * image.width * image.height <= 3 * PIXELS
    assert max(image.size) <= MAX_SIDE
    assert image_size(folder, "a.png", PIXELS) == (image.height, image.width)
    assert decode_image(io.BytesIO(content), "it", PIXELS).tobytes() == image.tobytes()


MAPPED = (
    "eJx9zEEKwjAQheFJW6UuFBRUGAT33qRk52lc5jwuZU7iHXKO9g9OQlcmfOSRl8w0PWQUkb1IGCSQdgieN+hCLwPnGz253Bdbzx0O"
    "oZM75wdH//vFyd/0OHsusy7+prh6NtxW85+r+WWNvl9/l4hmmX8UEQmGPNcuWqWISDDk1qVUKSISDLl1FitFRIIhty5rpYhIMOTW"
    "LQvgeXg=",
    "eJx9zEEKwjAQheFJW6UuFBRUGAT33qRk52lc5jwuZU7iHXKO9g9OQldO+cijL5lpesgoInuRMEgg7RA8b9CFXgbON3py+V9sPXc4"
    "hE7unB8c/e0XJ7/T4+y57Lr4nTJXz4bbav9ztb/M6N/r74holvlHEZFgyHPtolWKiARDbl1KlSIiwZBbZ7FSRCQYcuuyVoqIBENu"
    "3QIK2Hl3",
)
"""Uncompressed TIFF files whose tiles do not fit; mapped into memory, they came out otherwise than from bytes."""


@pytest.mark.parametrize("packed", MAPPED)
def test_damage_is_the_same_by_path_and_by_bytes(packed: str, tmp_path: Path) -> None:
    check(zlib.decompress(base64.b64decode(packed)), tmp_path)


@fuzz(1700, content=damaged())
def test_a_damaged_image_is_rgb_or_refused(content: bytes, tmp_path: Path) -> None:
    check(content, tmp_path)


@fuzz(300, start=st.sampled_from([b"", *(seed[:12] for kind in FORMATS for seed in SEEDS[kind])]), rest=st.binary())
def test_bytes_behind_any_beginning_are_rgb_or_refused(start: bytes, rest: bytes, tmp_path: Path) -> None:
    check(start + rest, tmp_path)


def test_the_undamaged_ones_are_images() -> None:
    for kind, contents in SEEDS.items():
        assert len(contents) >= 4, kind
        refused = 0
        for content in contents:
            try:
                assert decode_image(io.BytesIO(content), kind).mode == "RGB"
            except SampleError as error:
                assert "32 bits" in str(error)
                refused += 1
        assert refused < len(contents) / 2
