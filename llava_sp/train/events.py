"""What happened to a run besides its steps: one line for each event, in the output folder."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_sp.utils.logging import get_logger
from llava_sp.utils.ranks import is_main

logger = get_logger(__name__)

EVENTS_NAME = "events.jsonl"
"""A JSON object a line: `time` (UTC, ISO 8601), `event`, `message`, and what else the event tells of."""


def record(folder: Path, event: str, message: str, **fields: Any) -> None:
    """Warns of an event in the log and adds it to the output folder's events; on the first rank alone.

    Args:
        folder: The output folder.
        event: The kind of event, such as `loss_spike`.
        message: What happened, for people.
        **fields: What happened, for programs, such as `step`.
    """
    if is_main():
        logger.warning("%s", message)
        append(folder, event, message, **fields)


def append(folder: Path, event: str, message: str, **fields: Any) -> None:
    """Adds an event as `record` does, but on any rank and silently; a disk that takes no more is no reason to stop."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = {"time": time, "event": event, "message": message, **fields}
    # JSON has no NaN and no infinity.
    plain = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / EVENTS_NAME).open("ab+") as file:
            torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"  # a process died in a line
            file.write(b"\n" * torn + json.dumps(plain, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        logger.warning("The event could not be written to %s: %s", folder / EVENTS_NAME, error.strerror)


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of an output folder, oldest first, without lines that a crash has torn."""
    path = folder / EVENTS_NAME
    events = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
