"""Output folders as `python -m llava_sp.eval` writes them, of the small files of the benchmarks' formats."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from llava_sp.eval.benchmarks import get_benchmark
from tests.eval.benchmarks.helpers import answers_to, copy_of, write_answers


@pytest.fixture
def data(tmp_path) -> Path:
    """A data root with the tiny world, its two images included, and with POPE and MME without images."""
    root = tmp_path / "data"
    copy_of("tiny", root)
    copy_of("pope", root)
    copy_of("mme", root).rename(root / "MME")
    (root / "tiny/images/held_out").mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (640, 320), colour).save(root / f"tiny/images/held_out/00000{number}.png")
    return root


@pytest.fixture
def evaluated(data, tmp_path) -> Callable[..., Path]:
    """Makes or extends an output folder by a benchmark's result, with fields of `scores.json` changed."""

    def make(output="mine", name="tiny", answers=None, **changes):
        benchmark, folder = get_benchmark(name), tmp_path / output / name
        answers = answers or answers_to(name)
        scores = benchmark.score(answers, data / benchmark.folder)
        made_with = {"data_folder": str(data / benchmark.folder), "data_sha256": {"questions": "same"}}
        told = {"benchmark": name, "title": benchmark.title, "limit": None, "failures": 0, "strict": False}
        folder.mkdir(parents=True)
        write_answers(folder / "answers.jsonl", answers)
        (folder / "scores.json").write_text(json.dumps(told | asdict(scores) | {"made_with": made_with} | changes))
        summary = {"model": {"path": f"/models/{output}", "files": None}, "benchmarks": {}, "not_run": {}}
        (folder.parent / "summary.json").write_text(json.dumps(summary))
        return folder.parent

    return make


@pytest.fixture
def report(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str]]:
    """Runs the command; returns its status and what it printed. The report is `report.md` and `report.html`."""
    from llava_sp.eval.report import __main__ as command

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["report", *map(str, arguments), "--output", str(tmp_path / "report")])
        try:
            command.main()
            status = 0
        except SystemExit as error:
            status = int(error.code)
        streams = capsys.readouterr()
        return status, streams.out + streams.err

    return call
