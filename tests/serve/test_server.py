"""The OpenAI-compatible server, asked over HTTP by OpenAI's own client."""

import asyncio
import base64
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest

from llava_sp.eval import run_llava
from llava_sp.serve import server
from tests.reliability.runs import AT_MOST
from tests.reliability.sockets import listening

QUESTION = "Is there a digit?"
TOKENS = 8


@pytest.fixture(scope="module")
def running(checkpoints):
    """A running server, started as a user would, of an adapter checkpoint: its address and process."""
    command = [sys.executable, "-m", "llava_sp.serve", "openai", "--model-path", str(checkpoints["adapter"])]
    with subprocess.Popen([*command, "--port", "0", "--device", "cpu"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        late = threading.Timer(AT_MOST, process.kill)  # ends what is read of a server that says nothing
        late.start()
        try:
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("".join(log))
            late.cancel()
            yield found[1], process.pid
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=AT_MOST)[1]
        finally:
            late.cancel()
            process.kill()
        assert process.returncode == 0, rest
        assert "Traceback" not in rest


@pytest.fixture(scope="module")
def address(running):
    return running[0]


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def about(url: str, text: str = QUESTION) -> list[dict]:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def ask(client, messages, **fields):
    return client.chat.completions.create(
        **{"model": "adapter", "messages": messages, "temperature": 0, "max_tokens": TOKENS, **fields}
    )


def run_llavas_answer(checkpoint: Path, monkeypatch, capsys, *image: str) -> str:
    flags = ["--model-path", str(checkpoint), "--temperature", "0", "--max_new_tokens", str(TOKENS), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["run_llava", *flags, *image, "--query", QUESTION])
    run_llava.main()
    return capsys.readouterr().out.strip()


def test_it_listens_on_this_machine_alone(running):
    address, process = running
    assert listening(process) == {f"0100007F:{int(address.rpartition(':')[2]):04X}"}


def test_it_serves_one_model(client):
    assert [model.id for model in client.models.list()] == ["adapter"]
    with pytest.raises(openai.BadRequestError, match=r"model: '/etc' is not served here; the only model is 'adapter'"):
        ask(client, [{"role": "user", "content": QUESTION}], model="/etc")


def test_it_answers_about_an_image_as_run_llava_does(client, checkpoints, image_file, monkeypatch, capsys):
    wanted = run_llavas_answer(checkpoints["adapter"], monkeypatch, capsys, "--image-file", str(image_file))
    messages = about(data_url(image_file.read_bytes()))
    answer = ask(client, messages)
    assert answer.choices[0].message.content.strip() == wanted
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.prompt_tokens > 6 + 144

    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, messages, stream=True)]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces).strip() == wanted


def test_it_answers_text_alone(client, checkpoints, monkeypatch, capsys):
    wanted = run_llavas_answer(checkpoints["adapter"], monkeypatch, capsys)
    answer = ask(client, [{"role": "user", "content": QUESTION}])
    assert answer.choices[0].message.content.strip() == wanted
    assert answer.usage.prompt_tokens < 144


def test_it_remembers_and_stops(client, image_file):
    first = about(data_url(image_file.read_bytes()))
    answer = ask(client, first).choices[0].message.content
    turns = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    assert ask(client, turns).usage.prompt_tokens > ask(client, first).usage.prompt_tokens + TOKENS
    stop = answer.strip()[3:5]
    stopped = ask(client, first, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == answer.partition(stop)[0]
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, first, stop=[stop], stream=True)]
    assert "".join(pieces) == stopped.message.content


def test_a_seed_repeats_an_answer(client):
    def sampled(**fields):
        return ask(client, [{"role": "user", "content": QUESTION}], temperature=1.5, **fields)

    first, again, other = (sampled(seed=seed).choices[0].message.content for seed in (7, 7, 8))
    assert first == again != other
    pieces = [chunk.choices[0].delta.content or "" for chunk in sampled(seed=7, stream=True)]
    assert "".join(pieces).strip() == first.strip()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (about(data_url(b"no image")), r"The image of the request \(8 bytes\) cannot be decoded: it is no known image"),
        (about("data:image/png;base64,%%%"), "not base64"),
        (about("http://127.0.0.1:1/a.png"), "must be a data URL"),
        (about("file:///etc/passwd"), "must be a data URL"),
        (about("/etc/passwd"), "must be a data URL"),
        (about(data_url(b"P6 100000 100000 255\n", "ppm")), "far too many pixels"),
        (about(data_url(b"P6 9000 9000 255\n", "ppm")), "9000 x 9000 pixels"),
        ([{"role": "user", "content": 2 * about("data:")[0]["content"]}], "one image"),
        ([{"role": "user", "content": "<image> What?"}], "<image>"),
        ([{"role": "user", "content": "red blue " * 3000}], r"tokens long with its images, and the model takes 2,048"),
        (14 * about("data:"), "has 14 images, and the model takes 13 at most"),
        ([{"role": "user", "content": "A"}, {"role": "user", "content": "B"}], "in turn"),
        ([{"role": "tool", "content": "A"}], r"messages\.0\.role: Input should be 'system', 'user' or 'assistant'"),
        ([], "messages: "),
    ],
)
def test_what_it_cannot_answer_is_one_sentence(client, messages, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(client, messages)
    assert caught.value.body["message"].count("\n") == 0


def test_an_answer_ends_with_the_context(client):
    text = [{"role": "user", "content": "red " * 960}]
    answer = ask(client, text, max_tokens=10**9)
    assert answer.usage.total_tokens <= 2048
    assert (answer.usage.total_tokens == 2048) == (answer.choices[0].finish_reason == "length")


@pytest.mark.parametrize("pieces", [["a #", "#", "# b"], ["a ###"], ["a ", "###", "c"], ["a #", "# b"], ["a #"], []])
def test_a_stop_string_is_no_part_of_the_answer_however_it_is_cut(pieces):
    async def collect():
        queue = asyncio.Queue()
        for piece in [*pieces, None]:
            queue.put_nowait(piece)
        passed = server._UntilStop(queue, ["###", "</s>"])
        found = [await passed.get()]
        while found[-1] is not None:
            found.append(passed.get_nowait())
        return "".join(found[:-1])

    assert asyncio.run(collect()) == "".join(pieces).partition("###")[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"max_tokens": 0},
        {"top_p": 2},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"stop": "a" * 65},
        {"seed": 2**63},
    ],
)
def test_settings_out_of_range_are_named(client, fields):
    with pytest.raises(openai.BadRequestError, match=next(iter(fields))):
        ask(client, [{"role": "user", "content": "A"}], **fields)


@pytest.mark.parametrize(
    "path", ["/load_model", "/reset", "/v1/responses", "/v1/completions", "/docs", "/openapi.json"]
)
def test_nothing_else_is_open(client, address, path):
    with pytest.raises(openai.NotFoundError):
        client.post(f"{address}{path}", cast_to=object, body={"model": "/etc"})


def test_health(client, address):
    assert client.get(f"{address}/health", cast_to=object) == {"status": "ok"}
