"""JSON records out of a file of any size, one at a time, with the place of each in bytes."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llava_sp.utils.errors import UserError

_DECODER = json.JSONDecoder()
_BLOCK = 1 << 20
_CUT = "the file ends here; is it truncated?"
_SPACES = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = 16
"""More characters than any JSON token has that is not a string: an error that close to the end may be a cut."""


def scan_records(path: Path) -> Iterator[tuple[int, int, Any]]:
    """Yields the first byte, the number of bytes, and the value of each record of a JSON list or of JSON lines.

    Raises:
        UserError: The file is empty, malformed or truncated; the message gives record and line.
    """
    with path.open("rb") as file:
        stream = _Stream(file, path)
        first = stream.peek()
        if first == "":
            raise UserError(f"The data file {path} is empty.")
        if first != "[":
            while stream.peek():
                yield stream.value()
            return
        stream.expect("[")
        ended = stream.peek() == "]"
        while not ended:
            yield stream.value()
            ended = stream.peek() == "]"
            if not ended:
                stream.expect(",")
        stream.expect("]")
        if stream.peek():
            raise stream.wrong("something follows the list's end")


class _Stream:
    """A window that moves over a UTF-8 file, decoding one JSON value after the other."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.count = 0  # values so far
        self._file, self._path = file, path
        self._text, self._at = "", 0
        self._line = 1
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._byte = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(self._byte)

    def peek(self) -> str:
        """Returns the next character that is not white space, or "" at the end of the file."""
        while True:
            self._advance(_SPACES.match(self._text, self._at).end())  # type: ignore[union-attr]  # it matches ""
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def expect(self, character: str) -> None:
        """Passes over the next character, which must be this one."""
        found = self.peek()
        if found != character:
            raise self.wrong(f"{character!r} should follow, not {found!r}" if found else _CUT)
        self._advance(self._at + 1)

    def value(self) -> tuple[int, int, Any]:
        """Decodes the next value; returns its first byte, its number of bytes, and itself."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                at_end = len(self._text) - error.pos < _LONGEST_TOKEN or error.msg.startswith("Unterminated")
                if at_end and self._read():
                    continue
                self.count += 1
                self._line += self._text.count("\n", self._at, error.pos)
                raise self.wrong(_CUT if at_end else error.msg) from None
            except (RecursionError, ValueError) as error:  # the latter of a number of thousands of digits
                self.count += 1
                too_deep = isinstance(error, RecursionError)
                raise self.wrong("it is nested too deeply" if too_deep else str(error)) from None
        start = self._byte
        self._advance(end)
        self.count += 1
        return start, self._byte - start, value

    def wrong(self, what: str) -> UserError:
        """Returns an error that names the file, the latest record and the line."""
        end = "" if what.endswith("?") else "."
        return UserError(f"{self._path} is not valid JSON in record {self.count}, line {self._line}: {what}{end}")

    def _advance(self, to: int) -> None:
        passed = self._text[self._at : to]
        self._byte += len(passed) if passed.isascii() else len(passed.encode())
        self._line += passed.count("\n")
        self._at = to

    def _read(self) -> bool:
        """Reads on, letting go of what is passed; returns whether there was more."""
        # A value that is longer is decoded from its start each time: twice as much in each turn keeps that linear.
        block = self._file.read(max(_BLOCK, len(self._text) - self._at))
        try:
            more = self._decode(block, not block)
        except UnicodeDecodeError as error:
            raise self.wrong(f"it is not UTF-8 text ({error.reason})") from None
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(block)
