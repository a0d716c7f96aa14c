"""Data files are read through an index; what is wrong with one is told by record and line."""

import json
import multiprocessing
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_sp.data import json_stream, records
from llava_sp.data.records import Record, open_records
from llava_sp.utils.errors import UserError


def sample(number: int, question: str = "What is it?", answer: str = "A café.", image: bool = True) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"s{number}", **({"image": f"coco/{number}.jpg"} if image else {}), "conversations": turns}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_records(samples: list[dict[str, Any]]) -> list[Record]:
    return [Record(one["id"], one.get("image"), one["conversations"]) for one in samples]


@pytest.mark.parametrize(
    "layout",
    [
        lambda samples: json.dumps(samples),
        lambda samples: json.dumps(samples, indent=2, ensure_ascii=False),
        lambda samples: "\ufeff\n" + json.dumps(samples, ensure_ascii=False) + "\n\n",
        lambda samples: "\n".join(json.dumps(one, ensure_ascii=False) for one in samples),
        lambda samples: "\r\n\r\n".join(json.dumps(one) for one in samples) + "\r\n",
    ],
    ids=["list", "indented list", "byte order mark", "lines", "windows lines"],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_every_layout_gives_the_same_records(
    layout: Any, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    samples = [sample(n, question='多 \\ " \t😀' * n, image=n % 2 == 0) for n in range(12)]
    opened = open_records(write(tmp_path / "data.json", layout(samples)))
    assert len(opened) == 12
    assert [opened[n] for n in range(12)] == as_records(samples)
    assert opened[-1] == opened[11]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5), ascii=st.booleans())
def test_any_text_comes_back(texts: list[str], ascii: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    samples = [sample(n, question=text, answer=text) for n, text in enumerate(texts)]
    path = write(tmp_path_factory.mktemp("any") / "data.json", json.dumps(samples, ensure_ascii=ascii))
    assert list(open_records(path)) == as_records(samples)


def test_lengths_are_words_and_their_sign_the_modality(tmp_path: Path) -> None:
    samples = [sample(0, "one two", "three"), sample(1, "one\xa0two  three", "", image=False), sample(2, "", "", False)]
    opened = open_records(write(tmp_path / "data.json", samples))
    assert opened.modality_lengths.tolist() == [3, -3, -1]


def test_ids_may_be_numbers_or_absent_and_an_image_null(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}]
    content = [{"id": 17, "conversations": turns}, {"image": None, "conversations": turns}]
    content.append({"id": None, "conversations": turns})
    assert list(open_records(write(tmp_path / "data.json", content))) == [
        Record("17", None, turns),
        Record("1", None, turns),
        Record("2", None, turns),
    ]


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("", ["is empty"]),
        (" \n\n ", ["is empty"]),
        ("[]", ["holds no records"]),
        ('[{"id": "a"\n "b"}]', ["record 1", "line 2"]),
        ("[\n" + json.dumps(sample(0)) + ",\n" + json.dumps(sample(1))[:-9], ["record 2", "line 3", "truncated"]),
        ("[\n" + json.dumps(sample(0)) + ",\n", ["record 2", "line 3", "truncated"]),
        ("[\n" + json.dumps(sample(0)) + "\n", ["record 1", "line 3", "truncated"]),
        ("[" + json.dumps(sample(0)) + json.dumps(sample(1)) + "]", ["record 1", "',' should follow"]),
        ("[" + json.dumps(sample(0)) + "] and more", ["follows the list's end"]),
        (json.dumps(sample(0)) + "\n" + '{"id": tru', ["record 2", "line 2", "is it truncated?"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("[" + "1" * 5000 + "]", ["digits"]),
        ("<html>404</html>", ["record 1", "line 1"]),
        ("[7]", ["Record 1", "not a JSON object"]),
        ([{"id": "x7", "text": "Hi"}], ["Record 1", "'x7'", "conversations"]),
        (
            [sample(0), {"id": "x7", "conversations": [{"from": "human", "value": None}]}],
            ["Record 2", "'x7'", "'value'"],
        ),
        ([sample(0, "Hi \ud83d")], ["'s0'", "half a character"]),
        ([{"id": "x7", "image": ["a", "b"], "conversations": []}], ["'x7'", "one path"]),
        ([{"id": ["x7"], "conversations": []}], ["Record 1", "'id' must be a text or a number"]),
    ],
)
def test_a_wrong_file_is_refused_and_leaves_nothing(content: Any, culprits: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", content)
    with pytest.raises(UserError) as caught:
        open_records(path)
    assert all(culprit in str(caught.value) for culprit in [str(path), *culprits]), caught.value
    assert os.listdir(tmp_path) == ["data.json"]


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b'[{"id": "\xff\xfe"}]')
    with pytest.raises(UserError, match="not UTF-8"):
        open_records(tmp_path / "data.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        open_records(tmp_path / "none.json")


def test_the_index_is_built_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.json", [sample(0)])
    built = []
    build = records._build
    monkeypatch.setattr(records, "_build", lambda *paths: (built.append(paths), build(*paths)))
    open_records(path)
    assert open_records(path)[0].id == "s0"
    assert len(built) == 1
    write(path, [sample(5), sample(6)])
    assert [record.id for record in open_records(path)] == ["s5", "s6"]
    assert len(built) == 2
    assert len(list(tmp_path.glob(".data.json.*.index.npy"))) == 1  # the outdated one is gone


def test_the_index_goes_elsewhere_if_asked_or_if_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.json", [sample(0)])
    assert open_records(path, cache_dir=tmp_path / "asked")[0].id == "s0"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(records.os, "access", lambda *_: False)
    assert open_records(path)[0].id == "s0"
    assert list((tmp_path / "home").rglob("*.index.npy"))
    assert not list(tmp_path.glob("*.npy"))


def test_a_file_that_changes_in_use_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", [sample(0), sample(1)])
    opened = open_records(path)
    write(path, "[" + " " * 1000 + "]")
    with pytest.raises(UserError, match="changed while it was in use"):
        opened[1]


def test_a_damaged_index_is_built_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", [sample(0), sample(1)])
    open_records(path)
    (index,) = tmp_path.glob("*.npy")
    whole = index.read_bytes()
    for damaged in (b"", b"PK", whole[:-17], whole.replace(b"(3,)", b"(2,)"), whole[:-20] + b"x" + whole[-19:]):
        index.write_bytes(damaged)
        assert [record.id for record in open_records(path)] == ["s0", "s1"]
        assert index.read_bytes() == whole


def test_the_index_of_a_file_with_a_longer_name_stays(tmp_path: Path) -> None:
    for name in ("data.json.old", "data.json"):
        open_records(write(tmp_path / name, [sample(0)]))
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_file_that_changes_after_all_is_not_read_by_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", [sample(0)])
    packed = pickle.dumps(open_records(path))
    open_records(write(path, [sample(5), sample(6)]))
    with pytest.raises(UserError, match="changed while it was in use"):
        pickle.loads(packed)  # noqa: S301


def test_a_record_that_is_too_deep_for_where_it_is_read_is_told(tmp_path: Path) -> None:
    nested = "[" * 800 + "]" * 800
    opened = open_records(write(tmp_path / "data.json", f'[{{"conversations": [], "more": {nested}}}]'))

    def read(depth: int) -> Record:
        return read(depth - 1) if depth else opened[0]

    with suppress(UserError):  # whether there is room depends on the version of Python
        assert read(sys.getrecursionlimit() // 2) == Record("0", None, [])


def test_a_record_much_longer_than_a_block_takes_few_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    decoder = SimpleNamespace(raw_decode=lambda *where: (attempts.append(1), json.JSONDecoder().raw_decode(*where))[1])
    monkeypatch.setattr(json_stream, "_BLOCK", 8)
    monkeypatch.setattr(json_stream, "_DECODER", decoder)
    long = sample(0, question="x" * 100_000)
    assert list(open_records(write(tmp_path / "data.json", [long]))) == as_records([long])
    assert len(attempts) < 20


def test_records_travel_to_other_processes_without_their_content(tmp_path: Path) -> None:
    opened = open_records(write(tmp_path / "data.json", [sample(n) for n in range(1000)]))
    packed = pickle.dumps(opened)
    assert len(packed) < 1000
    assert pickle.loads(packed)[999] == opened[999]  # noqa: S301


def _open_and_count(path: Path) -> int:
    return len(open_records(path))


def test_several_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", [sample(n) for n in range(2000)])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_open_and_count, [path] * 8) == [2000] * 8
    assert len(list(tmp_path.iterdir())) == 2


def test_forked_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    opened = open_records(write(tmp_path / "data.json", [sample(n, question="x" * n) for n in range(300)]))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(opened.__getitem__, range(300), chunksize=1) == list(opened)


def test_the_lengths_are_numbers_of_one_array(tmp_path: Path) -> None:
    lengths = open_records(write(tmp_path / "data.json", [sample(0)])).modality_lengths
    assert isinstance(lengths, np.ndarray) and lengths.dtype == np.int64
