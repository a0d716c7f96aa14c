"""A judge: a language model behind any endpoint that speaks OpenAI's chat API.

What it says is kept on disk before it is used, so that an interrupted run, or one whose judge went down, goes on from
there, and scores can be had again without asking.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_text
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

BASE_URL, MODEL, API_KEY = "OPENAI_BASE_URL", "JUDGE_MODEL", "OPENAI_API_KEY"
"""The environment's variables that say which judge; the key is neither logged nor kept."""

ATTEMPTS = 5
TIMEOUT = 120.0
LARGEST_REPLY = 1 << 20

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}


class Judge:
    """The judge that the environment names, and its reviews on disk, a JSON line each.

    Args:
        reviews: The file of reviews; it may hold earlier ones.
        pause: Seconds before the second attempt; they double with each further one.

    Attributes:
        name: The model's name.

    Raises:
        UserError: The environment names no judge, or the file holds something else.
    """

    def __init__(self, reviews: Path, pause: float = 1.0) -> None:
        self.name = os.environ.get(MODEL, "")
        self._url = os.environ.get(BASE_URL, "").rstrip("/")
        if not self.name or not self._url.startswith(("https://", "http://")):
            raise UserError(
                f"A judge scores this: set {MODEL} to a model's name, {BASE_URL} to an endpoint of OpenAI's chat API, "
                f"such as https://api.openai.com/v1, and {API_KEY} to its key."
            )
        self.reviews = reviews
        self.pause = pause
        self._kept = self._read()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int, about: dict[str, Any]) -> str:
        """Returns what the judge says to messages, from disk if it was asked the same before.

        Args:
            messages: Messages of the chat API.
            temperature: That of its sampling.
            max_tokens: Its longest reply.
            about: What to keep beside the reply, for readers of the file.

        Raises:
            UserError: The judge refuses, does not answer, or answers something other than a chat completion.
        """
        request = {"model": self.name, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        body = json.dumps(request).encode()
        key = hashlib.sha256(body).hexdigest()
        if key not in self._kept:
            reply = self._send(body)
            try:
                content = reply["choices"][0]["message"]["content"]
                if not isinstance(content, str):
                    raise TypeError
            except (TypeError, KeyError, IndexError):
                raise UserError(f"The judge {self.name!r} does not speak OpenAI's chat API; see {BASE_URL}.") from None
            row = about | {"content": content, "judge": reply.get("model", self.name), "request": key}
            self.reviews.parent.mkdir(parents=True, exist_ok=True)
            with self.reviews.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._kept[key] = content
        return self._kept[key]

    def _send(self, body: bytes) -> Any:
        """Posts a request, again after a while if the trouble may pass."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
        request = urllib.request.Request(f"{self._url}/chat/completions", body, headers)  # noqa: S310 - http(s) only
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with self._opener.open(request, timeout=TIMEOUT) as response:
                    return json.loads(response.read(LARGEST_REPLY))
            except urllib.error.HTTPError as error:
                reason = f"HTTP status {error.code}"
                error.close()
                if error.code not in _PASSING:
                    break
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                reason = type(getattr(error, "reason", error)).__name__
            logger.warning("The judge %s: %s, attempt %d of %d.", self.name, reason, attempt + 1, ATTEMPTS)
        raise UserError(
            f"The judge {self.name!r} cannot be asked ({reason}). {len(self._kept)} reviews are kept in "
            f"{self.reviews}; the same command goes on from there. The endpoint is in {BASE_URL}, the key in {API_KEY}."
        )

    def _read(self) -> dict[str, str]:
        """Reads the reviews that there are; a line that was cut off while it was written is dropped."""
        if not self.reviews.exists():
            return {}
        whole, cut, _ = self.reviews.read_text(encoding="utf-8").rpartition("\n")
        try:
            rows = [json.loads(line) for line in whole.split("\n") if line]
            kept = {row["request"]: row["content"] for row in rows}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{self.reviews} holds something other than a judge's reviews; move it away.") from None
        write_text(self.reviews, whole + cut)
        return kept


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection, which could lead the key elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
