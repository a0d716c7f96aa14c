"""Files that others wrote."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from llava_sp.data.images import load_image
from llava_sp.data.problems import Problem, SampleError
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import (
    is_hub_name,
    new_folder,
    parse_json,
    read_json,
    read_json_lines,
    resolve_inside,
    staged,
    write_json,
    write_json_lines,
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1', "cut off"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        ('{"a": "\\ud83d"}', "half a character"),
    ],
)
def test_what_is_no_json_is_told(text: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"q\.jsonl, line 3 .*{what}"):
        parse_json(text, "q.jsonl, line 3")


def test_both_halves_of_a_character_are_one() -> None:
    assert parse_json('"\\ud83d\\ude00"', "here") == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "line 2 is not valid JSON"),
        (b'{"b": 1}\n', "line 1 must be an object with a"),
        (b"[1]\n", "line 1 must be an object with a"),
        (b"\n", "is empty"),
        (b"\xff\n", "is not UTF-8 text"),
    ],
)
def test_lines_that_are_no_records_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"rows\.jsonl.* {message}"):
        read_json_lines(path, ["a"])


def test_lines_end_with_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "one\u2028line"}\n\n{"a": 2}', encoding="utf-8")
    assert read_json_lines(path, ["a"]) == [{"a": "one\u2028line"}, {"a": 2}]


@pytest.mark.parametrize("read", [read_json, lambda path: read_json_lines(path, ["a"])])
def test_what_cannot_be_read_is_told(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read(tmp_path / "none.json")


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"a": "one\u2028line\n"}, {"a": 2}]
    write_json_lines(tmp_path / "rows.jsonl", iter(rows))
    assert read_json_lines(tmp_path / "rows.jsonl", ["a"]) == rows
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 2


def test_impossible_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("x" * 300, "a", "\ud83d", "..", "/etc", "a\0b"):
        with pytest.raises(UserError, match="path"):
            resolve_inside(tmp_path, name)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_folder_that_does_not_answer_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Path, **named: object) -> os.stat_result:
        if self.name == "a.png":
            raise OSError(number, os.strerror(number))
        return stat(self, **named)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", fail)
    assert resolve_inside(tmp_path, "a.png") == tmp_path.resolve() / "a.png"
    with pytest.raises(SampleError, match=f"cannot be read: {os.strerror(number)}") as told:
        load_image(tmp_path, "a.png")
    assert told.value.problem is Problem.IMAGE_MISSING


MAKERS: list[Callable[[str], None]] = [
    lambda path: write_json(path, 1),
    lambda path: enter(new_folder(path)),
    lambda path: enter(staged(path, last="a")),
]


@pytest.mark.parametrize("place", ["/proc/none/here", "{folder}/file/here"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_place_that_nothing_can_be_written_to_is_told(
    make: Callable[[str], None], place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    path = place.format(folder=tmp_path)
    with pytest.raises(UserError, match=f"Cannot write to {path}: .*Name another place"):
        make(path)


def enter(made: AbstractContextManager[Path]) -> None:
    with made:
        pass


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("gpt2", True),
        ("lmsys/vicuna-7b-v1.5", True),
        ("checkpoints/pretrain", False),
        ("./gpt2", False),
        ("../gpt2", False),
        ("/models/gpt2", False),
        ("~/gpt2", False),
        ("a/b/c", False),
        ("a b", False),
        ("", False),
    ],
)
def test_a_mistyped_path_is_not_asked_for_on_the_hub(name: str, may_be: bool) -> None:
    assert is_hub_name(name) == may_be
