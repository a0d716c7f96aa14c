"""Files that others wrote."""

from pathlib import Path

import pytest

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import parse_json, read_json, resolve_inside


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


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_impossible_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("x" * 300, "a", "\ud83d", "..", "/etc", "a\0b"):
        with pytest.raises(UserError, match="path"):
            resolve_inside(tmp_path, name)
