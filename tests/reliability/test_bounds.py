"""Paths stay inside their root, and images, JSON and requests take memory and messages of a bounded size."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_sp.data.images import load_image
from llava_sp.data.records import open_records
from llava_sp.eval.answers import AnswersFile, read_answers
from llava_sp.eval.questions import Question, check_images, read_questions
from llava_sp.eval.tables import read_science
from llava_sp.model import loading
from llava_sp.serve import server
from llava_sp.serve.requests import Message, template_messages
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import parse_json, read_json, read_json_lines, resolve_inside
from tests.reliability.bombs import BOMBS, png, ways_in

LONGEST = 1000
"""Characters of the longest message: it names a culprit, and does not repeat it."""

WAYS = ("data set", "its size", "question", "table", "server", "processor")

# 2. Paths.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with links that lead out of it, in a circle, and to another place inside."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").touch()
    root = outside / "root"
    (root / "inside").mkdir(parents=True)
    (root / "out").symlink_to(outside)
    (root / "secret.png").symlink_to(outside / "secret.png")
    (root / "circle").symlink_to(root / "circle")
    (root / "shortcut").symlink_to(root / "inside")
    return root


PIECES = st.one_of(
    st.sampled_from(["..", ".", "", "out", "secret.png", "circle", "shortcut", "inside", "~", "root", "C:", "file:"]),
    st.text(max_size=8),
)
PATHS = st.builds(
    lambda start, pieces: start + "/".join(pieces), st.sampled_from(["", "/", "//", "\\\\", "C:\\"]), st.lists(PIECES)
)


@given(PATHS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_out_of_its_root(root: Path, relative: str) -> None:
    try:
        found = resolve_inside(root, relative)
    except UserError as error:
        assert len(str(error)) < LONGEST
    else:
        assert found.is_relative_to(root.resolve())
        assert found == Path(os.path.realpath(found))  # no link is left in it


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..", "out", "secret.png", "circle", "shortcut") and len(name.encode()) < 200
)


@given(st.lists(NAMES, min_size=1, max_size=5))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_real_name_is_where_it_says(root: Path, names: list[str]) -> None:
    """Blanks, dots, quotes, backslashes, emoji: a name is a name, unless Windows would take it for the root's."""
    if not names[0].startswith("\\") and names[0][1:3] != ":\\":
        assert resolve_inside(root, "/".join(names)) == root.resolve().joinpath(*names)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "//etc/passwd", "../secret.png", "inside/../../secret.png", "out/secret.png", "secret.png"),
        *("http://host/a.png", "file:///etc/passwd", "a\0.png", "x" * 300, "x/" * 3000, "C:\\a.png", "C:/a.png"),
        *("\\\\host\\share\\a.png", "circle", "circle/a.png", "\ud83d.png", "x" * 10**6),
    ],
)
def test_every_path_of_a_file_is_checked(name: str, root: Path, tmp_path: Path) -> None:
    """Of records, of questions, and of the questions of a benchmark."""
    (tmp_path / "questions.json").write_text(
        json.dumps([{"id": "1", "image": name, "conversations": [{"from": "human", "value": "What?"}]}])
    )
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question_id": 1, "text": "What?", "image": name}) + "\n")
    actions = [
        lambda: load_image(root, name),
        lambda: check_images([Question(1, "What?", name)], root),
        lambda: check_images(read_science(tmp_path / "questions.json", single_pred_prompt=True), root),
        lambda: check_images(read_questions(tmp_path / "questions.jsonl"), root),
    ]
    for action in actions:
        with pytest.raises(UserError) as caught:
            action()
        assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize("image", [3, ["a.png"], {"a": 1}, True, ""])
def test_what_is_no_path_is_told(image: Any, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question_id": 1, "text": "What?", "image": image}) + "\n")
    with pytest.raises(UserError, match=r"line 1: image must be a path"):
        read_questions(tmp_path / "questions.jsonl")


# 3. Images.


@pytest.fixture(scope="module")
def grown(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """By how many MiB a process grows at each bomb, by each way in."""
    folder = tmp_path_factory.mktemp("bombs")
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})
    loading.save(model, processor, folder / "model", stage="finetune")
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.bombs", str(folder / "model"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["control"] > 90, "what is measured is not memory"
    assert {*WAYS} == ways_in(str(folder / "model")).keys()
    return json.loads(done.stdout)


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("way", WAYS)
def test_a_bomb_takes_less_than_50_mib(bomb: str, way: str, grown: dict[str, float]) -> None:
    assert grown[f"{bomb}, {way}"] < 50


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_the_images_of_a_request_share_one_limit() -> None:
    """Each might be decoded alone; together they would take 1.5 GB."""
    url = data_url(png(6_000, 6_000))
    message = Message(role="user", content=[{"type": "image_url", "image_url": {"url": url}}])  # type: ignore[list-item]
    assert len(template_messages([message], 8)) == 1
    with pytest.raises(UserError, match=r"number 2 of it, has 6000 x 6000 pixels; at most 28,000,000 are decoded"):
        template_messages([message] * 8, 8)


# JSON, and the bodies of requests.

DEEP = {"list": "[" * 10**5, "object": '{"a":' * 10**5, "closed": "[" * 10**5 + "]" * 10**5}
ODD = {
    **DEEP,
    "long": '"' + "x" * 10**7,
    "digits": "9" * 10**5,
    "halves": '["' + "\\ud800" * 10**5 + '"]',
    "NUL": "\0" * 10**6,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_json_bomb_is_one_short_sentence_wherever_it_is_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(text + "\n")
    settings = {"a": 1}
    (tmp_path / "file.meta.json").write_text(json.dumps(settings))
    readers = [
        lambda: parse_json(text, "a text"),
        lambda: read_json(file),
        lambda: read_json_lines(file, ("question_id",)),
        lambda: read_questions(file),
        lambda: read_science(file, single_pred_prompt=True),
        lambda: read_answers(file),
        lambda: AnswersFile(file, settings),
        lambda: open_records(file),
    ]
    for reader in readers:
        with pytest.raises(UserError) as caught:
            reader()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST


@pytest.mark.parametrize("depth", [*range(100, 1100, 100), *range(950, 1000, 5)])
def test_no_depth_is_a_crash(depth: int) -> None:
    """Reading and checking may run out of depth at different ones."""
    text = "[" * depth + '"\\ud83d\\ude00"' + "]" * depth
    try:
        parse_json(text, "a text")
    except UserError as error:
        assert "nested too deeply" in str(error)


@given(st.text(alphabet='[]{}":,\\u0aedx-1 \n', max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_json_or_one_sentence(text: str) -> None:
    try:
        value = parse_json(text, "a text")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < LONGEST
    else:
        json.dumps(value, ensure_ascii=False).encode()


def post(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Sends a request to the server's application; returns the status and what the error says."""
    parts, sent = iter(chunks), []

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "scheme": "http"},
        **{"headers": [(b"content-type", b"application/json")], "http_version": "1.1", "client": ("127.0.0.1", 2)},
        **{"root_path": "", "server": ("127.0.0.1", 1), "asgi": {"version": "3.0"}},
    }
    config = SimpleNamespace(image_seq_length=150, text_config=SimpleNamespace(max_position_embeddings=2048))
    unreached: Any = SimpleNamespace(config=config)
    app: Any = server.make_app(unreached, unreached, "model", stop="</s>")
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent))["error"]["message"]


def test_a_request_without_end_is_left_unread() -> None:
    read = 0

    def endless() -> Iterable[bytes]:
        nonlocal read
        while True:
            read += 1 << 20
            yield bytes(1 << 20)

    assert post(endless()) == (413, "The request is longer than 33,554,432 bytes; shrink its images.")
    assert read == server.MAX_BODY + (1 << 20)


@pytest.mark.parametrize(
    "text", [*DEEP.values(), *('{"messages": ' + text for text in DEEP.values()), "\0", '"', "9" * 10**5]
)
def test_a_bomb_in_a_request_is_one_short_sentence(text: str) -> None:
    status, message = post([text.encode()])
    assert status == 400
    assert "\n" not in message and len(message) < LONGEST


@pytest.mark.parametrize(
    "fields", [{"model": "x" * 10**6}, {"x" * 10**6: 1, "messages": []}, {"messages": ["x" * 10**6]}]
)
def test_an_error_does_not_repeat_the_request(fields: dict[str, Any]) -> None:
    status, message = post([json.dumps({"messages": [{"role": "user", "content": "What?"}], **fields}).encode()])
    assert status == 400
    assert len(message) < LONGEST
