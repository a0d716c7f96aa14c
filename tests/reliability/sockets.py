"""Which TCP sockets a process listens on, and which it opens meanwhile."""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

LISTENING = "0A"
"""The state in Linux's tables of sockets."""


def listening(process: int | str = "self") -> set[str]:
    """Returns the addresses that a process listens on, in hexadecimal with the port: 127.0.0.1:80 is 0100007F:0050."""
    inodes = set()
    for handle in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # it is closed by now
            inodes.add(os.readlink(handle))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in inodes}


class Watch:
    """Watches this process: Python tells of each socket that it binds, and a thread looks for those of C++ code.

    Attributes:
        seen: The addresses, none twice.
    """

    _watching: "Watch | None" = None
    _hooked = False

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._before = listening()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        if not Watch._hooked:  # a hook is there for good
            sys.addaudithook(Watch._hear)
            Watch._hooked = True
        Watch._watching = self
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        Watch._watching = None
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.001):
            self.seen |= listening() - self._before

    @staticmethod
    def _hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.bind" and Watch._watching is not None and isinstance(arguments[1], tuple):
            Watch._watching.seen.add(str(arguments[1]))
