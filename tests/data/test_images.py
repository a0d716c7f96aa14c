"""Images come in as LLaVA reads them, and what is wrong with a file is told by its name."""

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from llava_sp.data.images import decode_image, image_size, load_image
from llava_sp.data.problems import Problem, SampleError
from tests.reliability.bad_data import write_bomb


def picture(mode: str = "RGB") -> Image.Image:
    gradient = Image.linear_gradient("L").resize((8, 6))
    return Image.merge("RGB", (gradient, gradient.rotate(180), gradient)).convert(mode)


@pytest.fixture
def refuse(tmp_path: Path):
    def check(name: str, problem: Problem, *culprits: str, **options: int) -> None:
        with pytest.raises(SampleError) as caught:
            load_image(tmp_path, name, **options)
        assert caught.value.problem is problem
        assert all(culprit in str(caught.value) for culprit in (name, *culprits))

    return check


def test_an_image_is_loaded_as_rgb(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    picture().save(tmp_path / "coco" / "a.png")
    image = load_image(tmp_path, "coco/a.png")
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert image.tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "gif"), ("1", "tiff")]
)
def test_other_modes_are_converted_as_pillow_does(mode: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    picture(mode).save(file)
    with Image.open(file) as opened:
        expected = opened.convert("RGB")
    assert load_image(tmp_path, file.name).tobytes() == expected.tobytes()


def test_of_a_palette_with_alpha_the_colours_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture("P").save(file, transparency=bytes(256))  # all of it transparent
    assert load_image(tmp_path, "a.png").tobytes() == picture("P").convert("RGB").tobytes()


GREYS = np.linspace(0, 65_535, 48).astype(np.uint16).reshape(6, 8)


def big_endian_tiff() -> bytes:
    """A TIFF of `GREYS` with the upper byte first, which Pillow reads but does not write."""
    size = GREYS.nbytes
    fields = [(256, 8), (257, 6), (258, 16), (259, 1), (262, 1), (273, 110), (278, 6), (279, size)]  # from byte 110
    entries = b"".join(struct.pack(">HHIHH", field, 3, 1, value, 0) for field, value in fields)
    return struct.pack(">2sHIH", b"MM", 42, 8, len(fields)) + entries + bytes(4) + GREYS.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", ["png", "tiff", "big_endian.tiff", "pgm"])
def test_greys_of_16_bits_keep_their_upper_8(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    if kind == "big_endian.tiff":
        file.write_bytes(big_endian_tiff())
    else:
        Image.fromarray(GREYS).save(file)
    assert np.array_equal(np.array(load_image(tmp_path, file.name)), np.stack([GREYS >> 8] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_which_no_one_tells_the_white_are_refused(mode: str, refuse, tmp_path: Path) -> None:
    picture(mode).save(tmp_path / "a.tiff")
    refuse("a.tiff", Problem.IMAGE_CORRUPT, "32 bits a pixel do not tell what is white")


def test_exif_rotation_is_not_applied_as_in_llava(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path, "a.jpg").size == (8, 6)
    assert image_size(tmp_path, "a.jpg") == (6, 8)


def test_the_size_is_read_from_the_header_alone(refuse, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert image_size(tmp_path, "cut.png") == (6, 8)
    refuse("cut.png", Problem.IMAGE_CORRUPT)
    with pytest.raises(SampleError, match=r"cut\.png.*8 x 6"):
        image_size(tmp_path, "cut.png", max_pixels=47)


def test_the_several_pictures_of_a_phone_are_its_first(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture("L")])
    assert load_image(tmp_path, "a.jpg").size == (8, 6)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert load_image(tmp_path, "a.png").size == (1, 1)


def test_a_missing_file(refuse, tmp_path: Path) -> None:
    refuse("none.jpg", Problem.IMAGE_MISSING, "does not exist")
    (tmp_path / "folder.jpg").mkdir()
    refuse("folder.jpg", Problem.IMAGE_MISSING)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_what_is_not_an_image(content: bytes, refuse, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    refuse("a.jpg", Problem.IMAGE_CORRUPT, f"{len(content)} bytes")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
def test_a_truncated_image(suffix: str, refuse, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.effect_noise((64, 64), 90).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    refuse(file.name, Problem.IMAGE_CORRUPT)


def test_a_format_that_would_start_another_program(refuse, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.eps")
    refuse("a.eps", Problem.IMAGE_CORRUPT)


def bomb(side: int) -> bytes:
    """A PNG whose header claims side x side pixels, with no data behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_001, 13_300, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int, refuse, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        refuse("bomb.png", Problem.IMAGE_TOO_LARGE, "64,000,000")


def test_a_picture_larger_than_the_screen_that_its_file_declares(refuse, tmp_path: Path) -> None:
    file = tmp_path / "a.gif"
    Image.new("P", (60, 50)).save(file)
    content = bytearray(file.read_bytes())
    content[6:10] = struct.pack("<HH", 1, 1)
    file.write_bytes(content)
    refuse("a.gif", Problem.IMAGE_TOO_LARGE, "60 x 50", max_pixels=2_999)


MEASURE = """
import sys
from llava_sp.data.images import decode_image, image_size, load_image
from llava_sp.utils.errors import UserError

def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) / 1024

folder, *names = sys.argv[1:]
load_image(folder, "warm_up.png")
for name in names:
    before = peak()
    for read in (image_size, load_image):
        try:
            read(folder, name)
        except UserError:
            pass
    print(peak() - before)
"""


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """The last one, of just as many pixels as are allowed, shows that the measure would find it."""
    write_bomb(tmp_path / "bomb.png")
    write_bomb(tmp_path / "bomb.tiff")
    write_bomb(tmp_path / "allowed.png", side=8_000)
    picture("P").save(tmp_path / "warm_up.png", transparency=bytes(256))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "bomb.png", "bomb.tiff", "allowed.png"]
    measured = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not measured.stderr  # neither of transparency nor of size
    png, tiff, allowed = map(float, measured.stdout.split())
    assert max(png, tiff) < 50  # MiB
    assert allowed > 150


def test_the_limit_is_inclusive(refuse, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    assert load_image(tmp_path, "a.png", max_pixels=48).size == (8, 6)
    refuse("a.png", Problem.IMAGE_TOO_LARGE, "8 x 6", max_pixels=47)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "http://host/a.png", "a\0.png", "link.png"])
def test_a_path_out_of_the_folder(name: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "secret.png")
    root = tmp_path / "images"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleError) as caught:
        load_image(root, name)
    assert caught.value.problem is Problem.IMAGE_OUTSIDE


def test_no_file_stays_open(tmp_path: Path) -> None:
    picture().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    before = len(os.listdir("/proc/self/fd"))
    kept = [load_image(tmp_path, "good.png") for _ in range(5)]
    for _ in range(5):
        with pytest.raises(SampleError):
            load_image(tmp_path, "bad.png")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 5


@pytest.mark.parametrize(("size", "what"), [((1, 300), "200 times"), ((10_001, 100), "10,000")])
def test_long_images_are_refused_for_what_padding_or_resizing_makes_of_them(
    size: tuple[int, int], what: str, tmp_path: Path
) -> None:
    Image.new("RGB", size).save(tmp_path / "long.png")
    with pytest.raises(SampleError, match=what):
        load_image(tmp_path, "long.png")


def test_what_is_wrong_crosses_to_another_process():
    error = pickle.loads(pickle.dumps(SampleError(Problem.IMAGE_CORRUPT, "a.png cannot be decoded.")))  # noqa: S301
    assert (error.problem, str(error)) == (Problem.IMAGE_CORRUPT, "a.png cannot be decoded.")


def test_texts_that_unpack_to_much_are_refused() -> None:
    """Pillow's own limit is 64 MiB; these 20 take a few kilobytes."""
    texts = PngImagePlugin.PngInfo()
    for number in range(20):
        texts.add_text(f"text{number}", " " * 10**6, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=texts)
    assert len(file.getvalue()) < 50_000
    with pytest.raises(SampleError, match="Too much memory used in text chunks"):
        decode_image(file, "a picture")
