"""Whatever a data file holds: its records come back as they are written, or one sentence says why not."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from llava_sp.data import json_stream
from llava_sp.data.records import Record, open_records
from llava_sp.utils.errors import UserError
from tests.reliability.strategies import CONTROL, ODD, fuzz

short = st.one_of(st.sampled_from(["", "a", "What is it?", "two  words", *CONTROL, *ODD]), st.text(max_size=4))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**30), 1e308]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, short, st.sampled_from(["\ud83d", "\udc00x"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=4,
)
turns = st.lists(st.fixed_dictionaries({"from": short, "value": short}, optional={"weight": values}), max_size=2)
records = st.fixed_dictionaries(
    {"conversations": turns},
    optional={"id": st.one_of(short, st.integers(), st.none()), "image": st.one_of(st.none(), short), "more": values},
)
FIELDS = ["id", "image", "conversations", "from", "value"]
PIECES = [
    *[b",", b"[", b"]", b"{", b"}", b'"', b":", b"\\", b"\n", b"\r\n", b"\0", b"\xff", b"\xed\xa0\x80", b"\xc3"],
    *[b"\xef\xbb\xbf", b"NaN", b"-Infinity", b"1e999", b"null", b"tru", b"-", b"9" * 5000, b"[" * 3000],
    *[b'{"a":' * 900, b'"\\ud800"', b'"\\u12', b"\\ud83d\\ude00", b'{"conversations": []}', b'"id": 1, "id": 2,'],
    *[b"\x1e", b"// no comment\n", b"'a'", b"]]", b"\t", b"\x85", b"\xc2\xa0", b"\xe2\x80\xa8"],
]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A record with a few of its parts missing, of the wrong type, or of another name."""
    record = draw(records)
    for _ in range(draw(st.integers(0, 2))):
        said = record.get("conversations")
        place = draw(st.sampled_from([record, *(said if isinstance(said, list) else [])]))
        if not isinstance(place, dict):
            continue
        name = draw(st.sampled_from(FIELDS))
        if draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = draw(values)
    return draw(values) if draw(st.integers(0, 20)) == 0 else record


@st.composite
def files(draw: st.DrawFn, content: st.SearchStrategy[Any] = records) -> tuple[list[Any], bytes]:
    """Some records, and a file of them in one of the layouts there are."""
    some = draw(st.lists(content, min_size=1, max_size=3))
    options = {"ensure_ascii": draw(st.booleans())}
    space = draw(st.sampled_from(["", "\n", "\r\n", " \t\n\n"]))
    if draw(st.booleans()):
        text = json.dumps(some, indent=draw(st.sampled_from([None, 0, 2])), **options)
    else:
        text = (space or "\n").join(json.dumps(one, **options) for one in some)
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return some, (mark + space + text + space).encode(errors="surrogatepass")


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A file of records with some bytes missing, changed, doubled or added."""
    _, content = draw(files(st.one_of(records, damaged())))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        until = draw(st.one_of(st.just(at), st.just(len(content)), st.integers(at, min(len(content), at + 12))))
        piece = draw(st.one_of(st.just(b""), st.sampled_from(PIECES), st.binary(max_size=4)))
        content = content[:at] + piece + content[draw(st.sampled_from([until, at])) :]
    return content


def read_plainly(content: bytes) -> list[Record] | None:
    """Reads a whole file at once; None if it is not what it should be."""
    try:
        text = content.decode("utf-8-sig").strip(" \t\r\n")
        found = json.loads(text) if text.startswith("[") else []
        rest = "" if text.startswith("[") else text
        while rest:
            value, end = json.JSONDecoder().raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip(" \t\r\n")
        return [as_record(one, position) for position, one in enumerate(found)] or None
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
        return None


def as_record(value: dict[str, Any], position: int) -> Record:
    name, image, said = value.get("id"), value.get("image"), value["conversations"]
    assert not isinstance(name, list | dict) and isinstance(image, str | None) and isinstance(said, list)
    name = str(position if name is None else name)
    for turn in said:
        assert isinstance(turn, dict) and isinstance(turn["from"], str) and isinstance(turn["value"], str)
    "".join([name, image or "", *(turn["value"] for turn in said)]).encode()
    return Record(name, image, said)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Writes a file of a date of its own."""
    dates = count(10**18)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power is cut here, and it takes most of the time

    def write(content: bytes) -> Path:
        path = tmp_path / "data.json"
        path.write_bytes(content)
        date = next(dates)
        os.utime(path, ns=(date, date))
        return path

    return write


def same(one: Any, other: Any) -> bool:
    """Equality, also of what is no number."""
    return repr(one) == repr(other)


def check(content: bytes, path: Path) -> None:
    """Checks that a file is read as if by one call of `json.loads`, or refused if that cannot be."""
    try:
        expected = read_plainly(content)
    except RecursionError:
        with suppress(UserError):  # how deep is too deep depends on the depth of the call
            list(open_records(path))
        return
    try:
        opened = open_records(path)
    except UserError:
        assert expected is None
        return
    assert expected is not None
    assert same(list(opened), expected)
    assert same(opened[-1], expected[-1])
    lengths = [sum(len(turn["value"].split()) for turn in record.conversations) for record in expected]
    signs = [1 if record.image is not None else -1 for record in expected]
    assert opened.modality_lengths.tolist() == [max(n, 1) * sign for n, sign in zip(lengths, signs, strict=True)]


blocks = st.sampled_from([1, 5, 64, 1 << 20])


@fuzz(600, file=files(), block=blocks)
def test_records_come_back_as_they_were_written(
    file: tuple[list[Any], bytes], block: int, written: Callable[[bytes], Path]
) -> None:
    some, content = file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        check(content, path := written(content))
    if b"\\ud" not in content and b"\xed" not in content:  # neither half a character, nor what may be one
        assert same(list(open_records(path)), [as_record(one, position) for position, one in enumerate(some)])


@fuzz(1000, content=damaged_files(), block=blocks)
def test_a_damaged_file_is_read_rightly_or_refused(
    content: bytes, block: int, written: Callable[[bytes], Path]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        check(content, written(content))


@fuzz(200, content=st.one_of(st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode())))
def test_what_is_no_data_file_is_refused(content: bytes, written: Callable[[bytes], Path]) -> None:
    check(content, written(content))


@fuzz(150, before=files(), after=files(), replaced=st.booleans(), at=st.integers(0, 3))
def test_a_file_that_changes_is_never_read_by_its_old_index(
    before: tuple[list[Any], bytes],
    after: tuple[list[Any], bytes],
    replaced: bool,
    at: int,
    written: Callable[[bytes], Path],
) -> None:
    old, new = (read_plainly(content) for _, content in (before, after))
    assume(old is not None and new is not None)
    opened = open_records(path := written(before[1]))
    if replaced:
        path.rename(path.with_suffix(".old"))  # who holds it open, reads on in it
    written(after[1])
    if replaced:
        assert same(list(opened), old)
    else:
        with pytest.raises(UserError, match="changed"):
            opened[at % len(opened)]
    with pytest.raises(UserError, match="changed"):
        pickle.loads(pickle.dumps(opened))  # noqa: S301
    assert same(list(open_records(path)), new)


@fuzz(150, file=files(), changed=st.binary(max_size=6), at=st.integers(0, 400), cut=st.booleans())
def test_a_damaged_index_is_built_anew(
    file: tuple[list[Any], bytes], changed: bytes, at: int, cut: bool, written: Callable[[bytes], Path]
) -> None:
    expected = read_plainly(file[1])
    assume(expected is not None)
    open_records(path := written(file[1]))
    (index,) = path.parent.glob(".data.json.*.npy")
    content = index.read_bytes()
    index.write_bytes(content[:at] + changed + (b"" if cut else content[at + len(changed) :]))
    check(file[1], path)
