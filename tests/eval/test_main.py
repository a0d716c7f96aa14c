"""The command: every benchmark from its data to its scores, what each needs, and what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_sp.eval import __main__ as command
from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command; returns its exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command.main()
        return exit_.value.code, *capsys.readouterr()

    return run


def fill(data_root: Path) -> None:
    """Puts every benchmark's files, and images of noise for its questions, under LLaVA's folders."""
    random = np.random.default_rng(0)
    for benchmark in BENCHMARKS.values():
        root = data_root / benchmark.folder
        shutil.copytree(FIXTURES / benchmark.name, root, dirs_exist_ok=True)
        (root / benchmark.images).mkdir(parents=True, exist_ok=True)
        for question in benchmark.questions(root):
            if isinstance(question.image, str):
                path = root / benchmark.images / question.image
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path, "PNG")


def test_every_benchmark_runs_from_its_data_to_its_scores(call, checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_MODEL", raising=False)
    fill(tmp_path / "data")
    output = tmp_path / "out"
    paths = ["--model-path", checkpoint, "--data-root", tmp_path / "data", "--output", output]
    for benchmark in BENCHMARKS.values():
        monkeypatch.setattr(benchmark, "settings", dataclasses.replace(benchmark.settings, max_new_tokens=4))
    status, _, _ = call("--benchmark", "all", "--device", "cpu", *paths)
    summary = json.loads((output / "summary.json").read_text())
    judged = {name for name, benchmark in BENCHMARKS.items() if benchmark.scored == "judge"}
    assert status == 1
    assert set(summary["not_run"]) == judged
    assert all("JUDGE_MODEL" in reason for reason in summary["not_run"].values())
    assert set(summary["benchmarks"]) == set(BENCHMARKS) - judged
    for name, entry in summary["benchmarks"].items():
        assert (entry["value"] is None) == (BENCHMARKS[name].scored == "server")
        if BENCHMARKS[name].suffix is not None:
            assert Path(entry["submission"]).exists()
    for name in judged:  # the answers are there all the same
        questions = BENCHMARKS[name].questions(tmp_path / "data" / BENCHMARKS[name].folder)
        assert len((output / name / "answers.jsonl").read_text().splitlines()) == len(questions)


def test_the_list_tells_what_each_benchmark_needs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eval", "--benchmark", "list"])
    command.main()
    printed = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        assert f"{benchmark.name}: {benchmark.title}, {command.SCORED[benchmark.scored]}; " in printed
        for file in benchmark.files:
            assert file.name in printed and file.source in printed


def test_a_benchmark_without_a_name_shows_the_usage(call):
    status, _, errors = call("--benchmark")
    assert status == 2
    assert "usage: python -m llava_sp.eval [-h]" in errors and "--benchmark: expected one argument" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark", "pope,nope"], "There is no benchmark 'nope'"),
        (["--benchmark", "pope", "--conv-mode", "v9"], "v9"),
        (["--benchmark", "pope", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["--benchmark", "pope", "--batch-size", "-2"], "--batch-size must be at least 1, not -2"),
        (["--benchmark", "pope", "--model-path", "/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(flags, message, call, checkpoint, tmp_path):
    given = ["--model-path", checkpoint, "--device", "cpu", "--output", tmp_path / "out", "--data-root", tmp_path]
    status, _, errors = call(*given, *flags)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_missing_data_are_listed_with_source_and_place(call, checkpoint, tmp_path):
    given = ["--model-path", checkpoint, "--device", "cpu", "--output", tmp_path / "out", "--data-root", tmp_path]
    status, printed, _ = call("--benchmark", "mme", *given)
    assert status == 1
    for file in BENCHMARKS["mme"].files:
        assert f"  - {tmp_path / 'MME' / file.name} ({file.what}), from {file.source}" in printed


def test_the_output_is_named_after_the_model():
    options = command.parse(["--benchmark", "pope", "--model-path", "runs/mine/checkpoint-50"])
    assert options.output == Path("results/mine_checkpoint-50")


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [("cuda", None, 4), ("cuda", 3, 3), ("cpu", None, 1), ("cpu", 2, 2), ("cuda:1", None, 1), ("auto", 1, 1)],
)
def test_there_is_a_process_for_each_gpu(device, wanted, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    flags = [] if wanted is None else [f"--nproc_per_node={wanted}"]
    options = command.parse(["--benchmark", "pope", "--model-path", "m", "--device", device, *flags])
    assert command._count(options) == expected


def test_one_device_is_not_for_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for device, count, message in (("cuda:1", 2, "not cuda:1"), ("cuda", 5, "4 GPUs.*--device cpu")):
        arguments = ["--benchmark", "pope", "--model-path", "m", "--device", device, f"--nproc-per-node={count}"]
        with pytest.raises(UserError, match=message):
            command._count(command.parse(arguments))


def test_each_benchmark_has_its_script_and_each_script_names_benchmarks():
    named = set()
    for script in (ROOT / "scripts" / "eval").glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        if script.stem != "benchmark":
            [names] = re.findall(r'exec bash "\$\(dirname "\$0"\)/benchmark\.sh" (\S+) "\$@"', script.read_text())
            named |= set(names.split(","))
            assert [benchmark.name for benchmark in command.choose(names)] == names.split(",")
    variants = {"vqav2_val", "vizwiz_val", "mmbench_test", "mmbench_cn_test", "tiny"}
    assert named == set(BENCHMARKS) - variants


def test_a_script_passes_its_flags_on():
    script = ["bash", "scripts/eval/pope.sh", "--model-path", "m", "--batch_size", "0"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "error: --batch-size must be at least 1, not 0.\n")
