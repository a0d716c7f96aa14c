"""A data set with every kind of sample that training meets in the wild: good ones that look odd, and bad ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_sp.data.problems import Problem

SIDE = 13_300
"""Of an image that takes 21 KiB on the disk and 506 MiB once it is decoded."""


@dataclass(frozen=True)
class BadData:
    """A data file and its images.

    Attributes:
        data_path: The data file, in LLaVA's format.
        image_folder: The folder that its image paths are relative to.
        names: The names of all samples, by position.
        bad: What is wrong with each bad sample, by its name; the others are good.
    """

    data_path: Path
    image_folder: Path
    names: list[str]
    bad: dict[str, Problem]

    @property
    def share(self) -> float:
        """Share of bad samples."""
        return len(self.bad) / len(self.names)


def make_bad_data(folder: Path, plain: int = 8) -> BadData:
    """Writes a data set of every kind below `folder`.

    Args:
        folder: Where it goes.
        plain: Samples with nothing odd about them, of each modality, beside those.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    bad: dict[str, Problem] = {}

    def add(name: str, image: str | None, problem: Problem | None = None, question: str = "What?") -> None:
        marker = "<image>\n" if image is not None else ""
        turns = [{"from": "human", "value": marker + question}, {"from": "gpt", "value": f"It is {name}."}]
        records.append({"id": name, "conversations": turns} | ({} if image is None else {"image": image}))
        if problem is not None:
            bad[name] = problem

    for number in range(plain):
        Image.new("RGB", (30, 20), (20 * number, 90, 200)).save(images / f"plain{number}.jpg")
        add(f"plain image {number}", f"plain{number}.jpg")
        add(f"plain text {number}", None, question=f"What is {number}?")

    for name, (suffix, write) in ODD_IMAGES.items():
        write(images / f"{name}.{suffix}")
        add(name, f"{name}.{suffix}")
    add("nothing to learn", None, question="word " * 3000)

    for name, (suffix, write) in BROKEN_FILES.items():
        write(images / f"{name}.{suffix}")
        add(name, f"{name}.{suffix}", Problem.IMAGE_TOO_LARGE if name == "bomb" else Problem.IMAGE_CORRUPT)
    add("missing", "nowhere.jpg", Problem.IMAGE_MISSING)
    (images / "folder.jpg").mkdir()
    add("folder", "folder.jpg", Problem.IMAGE_MISSING)

    secret = folder / "secret.png"
    Image.new("RGB", (20, 20)).save(secret)
    (images / "link.png").symlink_to(secret)
    ways_out = {"above": "../secret.png", "absolute": str(secret), "link out": "link.png", "NUL": "plain0.jpg\0.png"}
    for name, path in {**ways_out, "URL": "http://localhost/a.png", "file URL": f"file://{secret}"}.items():
        add(name, path, Problem.IMAGE_OUTSIDE)

    add("image without a mark", "plain0.jpg", Problem.IMAGE_COUNT)
    records[-1]["conversations"][0]["value"] = "What?"
    add("two marks", "plain0.jpg", Problem.IMAGE_COUNT)
    records[-1]["conversations"] *= 2
    add("mark without an image", None, Problem.IMAGE_COUNT, question="<image>\nWhat?")
    add("two questions", None, Problem.ROLES)
    records[-1]["conversations"][1]["from"] = "human"
    add("no turns", "plain0.jpg", Problem.ROLES)
    records[-1]["conversations"] = []
    add("no room", "plain0.jpg", Problem.NO_ROOM)
    long = [{"from": "human", "value": "word " * 3000}, {"from": "gpt", "value": "Yes."}]
    records[-1]["conversations"] = long + records[-1]["conversations"]

    data_path = folder / "data.json"
    data_path.write_text(json.dumps(records))
    return BadData(data_path, images, [record["id"] for record in records], bad)


def picture(mode: str = "RGB") -> Image.Image:
    """A small picture with all greys, in one of Pillow's modes."""
    grey = Image.linear_gradient("L").resize((32, 24))
    return Image.merge("RGB", (grey, grey.rotate(180), grey)).convert(mode)


def grey_16() -> Image.Image:
    """A small picture of 16 bits, from black to white."""
    return Image.fromarray(np.linspace(0, 65_535, 32 * 24).astype(np.uint16).reshape(24, 32))


def _palette_with_alpha(path: Path) -> None:
    picture("P").save(path, transparency=bytes(range(256)))


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    picture().save(path, exif=exif)


def _truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_bomb(path: Path, side: int = SIDE) -> None:
    """Writes a small file of side x side pixels, which can be decoded if there is the memory."""
    Image.new("1", (side, side)).save(path)


Writers = dict[str, tuple[str, Callable[[Path], Any]]]

ODD_IMAGES: Writers = {
    "one pixel": ("png", lambda path: Image.new("RGB", (1, 1), "red").save(path)),
    "CMYK": ("jpg", lambda path: picture("CMYK").save(path)),
    "palette with alpha": ("png", _palette_with_alpha),
    "grey and alpha": ("png", lambda path: picture("LA").save(path)),
    "16 bits": ("png", lambda path: grey_16().save(path)),
    "rotated": ("jpg", _rotated),
    "PNG named JPEG": ("jpg", lambda path: picture().save(path, format="PNG")),
}
"""Images that can be used, by name: how their files end, and what writes one."""

BROKEN_FILES: Writers = {
    "empty": ("jpg", lambda path: path.write_bytes(b"")),
    "web page": ("jpg", lambda path: path.write_text("<!DOCTYPE html><html>404</html>")),
    "truncated JPEG": ("jpg", _truncated),
    "truncated PNG": ("png", _truncated),
    "32 bits": ("tiff", lambda path: picture("F").save(path)),
    "PostScript": ("eps", lambda path: picture().save(path)),
    "bomb": ("png", write_bomb),
}
"""Files that are no images to be used, alike."""
