"""The events of a run: whole lines, whatever happened to the process that wrote the last one."""

import json
import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from llava_sp.train import events


@pytest.fixture(autouse=True)
def _log_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("llava_sp"), "propagate", True)  # commands that set up logging end it


def test_an_event_is_a_line_of_the_folder_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        events.record(folder, "loss_spike", "The loss jumps.", step=7, loss=2.5)
        events.record(folder, "not_finite", "The loss is no number, étrange.", step=8, loss=float("nan"))
    assert [record.message for record in caplog.records] == ["The loss jumps.", "The loss is no number, étrange."]
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    spike, broken = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert datetime.fromisoformat(spike.pop("time")).utcoffset() == timedelta(0)
    assert spike == {"event": "loss_spike", "message": "The loss jumps.", "step": 7, "loss": 2.5}
    assert broken["loss"] == "nan"


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_line_costs_itself_alone(tmp_path: Path, cut: int) -> None:
    for step in (1, 2):
        events.append(tmp_path, "saved", "A checkpoint.", step=step)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [1] if cut > 1 else [1, 2]  # of the second line, its end alone is missing
    assert [event["step"] for event in events.read(tmp_path)] == whole
    events.append(tmp_path, "saved", "A checkpoint.", step=3)
    assert [event["step"] for event in events.read(tmp_path)] == [*whole, 3]


def test_the_first_rank_alone_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    events.record(tmp_path, "resumed", "From checkpoint-3.", step=3)
    assert events.read(tmp_path) == []


def test_a_folder_that_takes_no_more_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events.jsonl").mkdir()
    events.append(tmp_path, "saved", "A checkpoint.", step=1)
    assert "could not be written" in caplog.text
