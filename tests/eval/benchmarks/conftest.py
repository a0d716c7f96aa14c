"""A judge on this machine that says what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class StubJudge:
    """An endpoint of OpenAI's chat API.

    Attributes:
        reply: Maps a request to what is said, or to a status and a raw body.
        requests: The requests that came, as JSON.
        headers: Their headers.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict], str | tuple[int, str]] = lambda request: "8 9\nfine"
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubJudge]:
    """A stub judge that the environment names; it waits for nobody."""
    stub = StubJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append(request | {"path": self.path})
            stub.headers.append(dict(self.headers))
            said = stub.reply(request)
            if isinstance(said, str):
                status, body = 200, json.dumps({"model": "stub-1", "choices": [{"message": {"content": said}}]})
            else:
                status, body = said
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("JUDGE_MODEL", "stub")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()
