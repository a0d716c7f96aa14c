"""The dataset benchmark measures what it says it measures."""

from pathlib import Path

import pytest

from llava_sp.bench import dataset as bench
from llava_sp.data.records import open_records
from llava_sp.utils.errors import UserError


def test_the_synthetic_file_is_llavas_format(tmp_path: Path) -> None:
    bench.write_synthetic(tmp_path / "data.json", 24)
    records = open_records(tmp_path / "data.json")
    assert len(records) == 24
    assert [number for number in range(24) if records[number].image is None] == [0, 12]
    assert all("<image>" in records[number].conversations[0]["value"] for number in range(24) if number % 12)


def test_every_figure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "READS", 20)
    monkeypatch.setattr(bench, "WORKERS", 1)
    monkeypatch.setattr(bench, "fresh_process", lambda measure, path: measure(path))
    bench.main(["--records", "30", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for figure in (
        "30 records",
        "index built",
        "opened in",
        "20 random reads",
        "order of an epoch",
        "1 loader workers",
    ):
        assert figure in printed
    assert not list(tmp_path.iterdir())


def test_a_missed_promise_is_said() -> None:
    assert bench.promise(1.0, 2.0, "1 s") == "1 s (within the promised 2)"
    assert bench.memory(100, 500) == "400 MiB of 500 (MISSES the promised 300)"


def test_no_records_are_refused() -> None:
    with pytest.raises(UserError, match="--records"):
        bench.main(["--records", "0"])
