"""Small files that would fill the memory, and how much of it they take in every way in for images.

`python -m tests.reliability.bombs CHECKPOINT FOLDER` writes the bombs into a folder and prints, as JSON, by how many
MiB each makes a process grow at most; one process for all, as the imports take longest.
"""

import base64
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FAR_BEYOND = 2**31 - 1


def zeros(count: int) -> bytes:
    """Zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    return packer.compress(bytes(count)) + packer.flush()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A black image of one bit a pixel, all of it there where it is of a size that Pillow may decode."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = zeros((width // 8 + 1) * height) if width * height < 10**9 else b""
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif(width: int, height: int, *frame: int) -> bytes:
    """A screen, and a frame on it of the same size or another."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHH", 0, 0, *(frame or (width, height))) + b"\0\x02\x02\x44\x01\0;"


def riff(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WEBP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def webp(width: int, height: int) -> bytes:
    """A lossless image."""
    size = 0x2F | (width - 1) << 8 | (height - 1) << 22
    return riff(b"VP8L", size.to_bytes(5, "little") + b"\x88\x88\x08" + bytes(40))


def moving_webp(width: int, height: int, frames: int) -> bytes:
    """An animation."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = riff(b"ANMF", bytes(6) + canvas + b"\x64\0\0\0" + webp(width, height))
    return riff(b"VP8X", b"\x02\0\0\0" + canvas) + riff(b"ANIM", bytes(6)) + frames * frame


def tiff(width: int, height: int, pages: int = 1, *more: tuple[int, int, int, int]) -> bytes:
    """An image without its strips, on each of many pages."""
    fixed = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags = sorted([*fixed, (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 16), *more])
    size = 2 + 12 * len(tags) + 4
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    following = [8 + size * number for number in range(1, pages)] + [0]
    return b"II*\0\x08\0\0\0" + b"".join(page + struct.pack("<I", at) for at in following)


def jpeg(width: int, height: int) -> bytes:
    """The beginning of one."""
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\0"


def moving_png(side: int, frames: int) -> bytes:
    """An animation."""
    parts = [chunk(b"acTL", struct.pack(">II", frames, 0))]
    for number in range(frames):
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * number, side, side, 0, 0, 1, 10, 0, 0)))
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number + 1) + zeros(side * side)))
    return png(side, side, *parts)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 13,300": lambda: png(13_300, 13_300),
    "PNG of 14,000": lambda: png(14_000, 14_000),
    "PNG of 2^31": lambda: png(FAR_BEYOND, FAR_BEYOND),
    "PNG with a long zTXt": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros(200_000_000))),
    "PNG with a long iTXt": lambda: png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200_000_000))),
    "PNG with a long iCCP": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros(200_000_000))),
    "PNG with more rows than it says": lambda: png(8, 8, chunk(b"IDAT", zeros(200_000_000))),
    "PNG of a million frames": lambda: png(100, 100, chunk(b"acTL", struct.pack(">II", 10**6, 0))),
    "PNG that moves": lambda: moving_png(500, 200),
    "GIF of 65,535": lambda: gif(65_535, 65_535),
    "GIF of 9,000": lambda: gif(9_000, 9_000),
    "GIF with a larger frame": lambda: gif(8, 8, 9_000, 9_000),
    "WEBP of 16,383": lambda: riff(b"RIFF", b"WEBP" + webp(16_383, 16_383)),
    "WEBP of 9,000": lambda: riff(b"RIFF", b"WEBP" + webp(9_000, 9_000)),
    "WEBP that moves": lambda: riff(b"RIFF", b"WEBP" + moving_webp(9_000, 9_000, 50)),
    "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF": lambda: tiff(60_000, 60_000),
    "TIFF of many pages": lambda: tiff(8, 8, 20_000),
    "TIFF of many large pages": lambda: tiff(60_000, 60_000, 5_000),
    "TIFF with a long text": lambda: tiff(8, 8, 1, (270, 2, FAR_BEYOND, 8)),
    "TIFF with a long profile": lambda: tiff(8, 8, 1, (34_675, 7, FAR_BEYOND, 8)),
    "PPM": lambda: b"P6 60000 60000 255\n",
    "JPEG": lambda: jpeg(65_000, 65_000),
}


def ways_in(checkpoint: str) -> dict[str, Callable[[Path], object]]:
    """Returns every way that an image takes into a model."""
    from PIL import Image

    from llava_sp import LlavaSPProcessor
    from llava_sp.data.images import image_size, load_image
    from llava_sp.eval.batches import load_pixels
    from llava_sp.eval.questions import Question
    from llava_sp.serve.requests import Message, template_messages

    processor = LlavaSPProcessor.from_pretrained(checkpoint)

    def served(file: Path) -> object:
        url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        return template_messages([Message(role="user", content=[part])], most_images=1)

    return {
        "data set": lambda file: load_image(file.parent, file.name),
        "its size": lambda file: image_size(file.parent, file.name),
        "question": lambda file: load_pixels(Question(1, "What?", file.name), file.parent, processor),
        "table": lambda file: load_pixels(Question(1, "What?", file.read_bytes()), "", processor),
        "server": served,
        "processor": lambda file: processor(images=Image.open(io.BytesIO(file.read_bytes())), text="<image>"),
    }


def watch_memory() -> Callable[[], float]:
    """Returns a function that tells by how many MiB the resident memory has grown since, at most."""

    def resident(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    return lambda: (resident("VmHWM") - before) / 1024


def grown(action: Callable[[], object]) -> float:
    """Returns by how many MiB the resident memory grows meanwhile, at most; an error is as good as an end."""
    growth = watch_memory()
    with suppress(Exception):
        action()
    return growth()


def measure(checkpoint: str, folder: Path) -> Iterator[tuple[str, float]]:
    """Yields each bomb's name and way in, and by how much the process grew at most."""
    ways = ways_in(checkpoint)
    good = folder / "good.png"
    good.write_bytes(png(64, 64))
    for way in ways.values():  # what is loaded on first use
        way(good)
    for name, make in BOMBS.items():
        file = folder / "bomb"
        file.write_bytes(make())
        for label, way in ways.items():
            yield f"{name}, {label}", grown(lambda way=way, file=file: way(file))
    yield "control", grown(lambda: bytes([1]) * (100 << 20))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dict(measure(sys.argv[1], Path(sys.argv[2])))))
