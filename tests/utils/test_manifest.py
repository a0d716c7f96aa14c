"""A manifest tells what was written, and whether it still is."""

import errno
import json
from pathlib import Path

import pytest

from llava_sp.utils import manifest
from llava_sp.utils.errors import UserError
from llava_sp.utils.manifest import MANIFEST_NAME, seal, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "inner" / "b.bin").write_bytes(b"")
    seal(tmp_path)
    return tmp_path


def test_what_was_sealed_is_found_whole_and_new_files_are_left_alone(folder: Path) -> None:
    (folder / "note.txt").touch()
    verify(folder)
    assert json.loads((folder / MANIFEST_NAME).read_text())["a.bin"] == {
        "bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


def test_it_may_be_sealed_again_and_moved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    seal(folder)
    verify(folder.rename(tmp_path_factory.mktemp("other") / "place"))


def test_damage_is_named(folder: Path) -> None:
    (folder / "inner" / "b.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b\.bin has 1 bytes; manifest\.json says 0"):
        verify(folder)
    (folder / "inner" / "b.bin").unlink()
    with pytest.raises(UserError, match=r"b\.bin is missing"):
        verify(folder)


def test_other_bytes_of_the_same_number_are_noticed(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"abd")
    with pytest.raises(UserError, match=r"a\.bin is not what was written"):
        verify(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"a.bin": 3}', '{"a.bin": {}}', '{"../a.bin": {"bytes": 3}}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST_NAME).write_text(content)
    with pytest.raises(UserError):
        verify(folder)


def test_without_its_manifest_a_folder_is_not_complete(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(UserError, match="was not completed"):
        verify(folder)


def test_a_file_that_the_disk_does_not_give_is_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "sha256_file", fail)
    with pytest.raises(UserError, match=r"a\.bin cannot be read: Input/output error"):
        verify(folder)
