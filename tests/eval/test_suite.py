"""The suite: what it writes, what it does without, and that no interruption loses or doubles an answer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_sp.eval import answering, suite
from llava_sp.eval.__main__ import parse
from llava_sp.utils.errors import UserError
from tests.eval.colours import Colours, Letters
from tests.eval.conftest import QUESTIONS

ROOT = Path(__file__).parents[2]
BOTH = (Colours(), Letters())


@pytest.fixture
def data(image_folder, question_file, tmp_path) -> Path:
    """A data root that holds the one folder that both benchmarks read."""
    folder = tmp_path / "data" / "colours-folder"
    shutil.copytree(image_folder, folder / "images")
    question_file.rename(folder / "questions.jsonl")
    return folder


@pytest.fixture
def arguments(checkpoint, data, tmp_path) -> list[str]:
    paths = {"model-path": checkpoint, "data-root": data.parent, "output": tmp_path / "out"}
    named = [f"--{name}={path}" for name, path in paths.items()]
    return [*named, "--benchmark=colours", "--device=cpu", "--batch-size=3"]


@pytest.fixture
def run(arguments, tmp_path):
    """Runs benchmarks in this process; returns whether all ran, and a reader of the output's JSON files."""

    def command(*flags, benchmarks=BOTH):
        return suite.evaluate(benchmarks, parse([*arguments, *flags])), lambda name: read(tmp_path / "out" / name)

    return command


def read(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_submissions_and_what_they_were_made_with(run, data, tmp_path, capsys):
    complete, output = run()
    assert complete
    answers = lines(tmp_path / "out/colours/answers.jsonl")
    assert [answer["question_id"] for answer in answers] == [question.id for question in QUESTIONS]
    scores = output("colours/scores.json")
    even = sum(len(answer["text"]) % 2 == 0 for answer in answers)
    assert scores["headline"] == "even"
    assert scores["metrics"]["even"] == pytest.approx(100 * even / 7)
    assert (scores["questions"], scores["failures"], scores["limit"], scores["strict"]) == (7, 0, None, False)
    made_with = scores["made_with"]
    assert made_with["settings"]["temperature"] == 0
    assert made_with["data_folder"] == str(data)
    assert made_with["template"]["example"].endswith("USER: <image>\nWhat is in the image? ASSISTANT:")
    assert set(made_with["data_sha256"]) == {"questions.jsonl"}
    assert {"torch", "transformers", "python"} <= set(made_with["versions"])
    assert made_with["checkpoint"]["stage"] == "finetune"
    assert read(tmp_path / "out/letters/submission.json") == [answer["text"] for answer in answers]
    assert "metrics" not in output("letters/scores.json")
    summary = output("summary.json")
    assert summary["benchmarks"]["colours"]["value"] == scores["metrics"]["even"]
    assert summary["benchmarks"]["letters"]["submission"].endswith("letters/submission.json")
    assert summary["not_run"] == {}
    assert "letters" in capsys.readouterr().out


def test_missing_data_are_told_and_the_others_go_on(run, data):
    class Elsewhere(Colours):
        name = "elsewhere"
        folder = "not-there"

    complete, output = run(benchmarks=(Elsewhere(), Colours()))
    assert not complete
    reason = output("summary.json")["not_run"]["elsewhere"]
    for part in (str(data.parent / "not-there" / "questions.jsonl"), "the questions", "from example.org/questions"):
        assert part in reason
    assert list(output("summary.json")["benchmarks"]) == ["colours"]


def test_a_missing_image_is_told_before_the_model_is_loaded(run, data, monkeypatch):
    monkeypatch.delattr(answering, "load_model")
    (data / "images" / "b.png").unlink()
    complete, output = run()
    assert not complete
    assert "Question 'two' asks about the image 'b.png'" in output("summary.json")["not_run"]["colours"]


def test_a_corrupt_image_is_counted_and_all_else_is_scored(run, data, tmp_path):
    (data / "images" / "c.png").write_bytes(b"no image")
    complete, output = run()
    assert complete
    scores = output("colours/scores.json")
    assert (scores["failures"], scores["notes"], scores["strict"]) == (1, {"missing": 1}, True)
    [failure] = lines(tmp_path / "out/colours/answers.jsonl.failures.jsonl")
    assert failure["question_id"] == 4
    assert output("summary.json")["benchmarks"]["colours"]["failures"] == 1


def test_nothing_but_failures_is_no_score(run, data):
    for image in (data / "images").iterdir():
        image.write_bytes(b"no image")
    about_images = [line for line in lines(data / "questions.jsonl") if "image" in line]
    (data / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in about_images))
    complete, output = run(benchmarks=[Colours()])
    assert not complete
    assert "None of the 5 questions" in output("summary.json")["not_run"]["colours"]


def test_a_benchmark_that_cannot_be_scored_keeps_its_answers_and_not_the_others_from_theirs(run, tmp_path):
    class Odd(Colours):
        name = "odd"

        def score(self, *_, **__):
            raise TypeError("an answer of an odd kind")

    complete, output = run(benchmarks=[Odd(), Colours()])
    summary = output("summary.json")
    assert not complete
    assert summary["not_run"] == {"odd": "TypeError while scoring: an answer of an odd kind"}
    assert set(summary["benchmarks"]) == {"colours"}
    assert len(lines(tmp_path / "out/odd/answers.jsonl")) == 7


def test_a_look_at_the_first_questions_is_marked_and_loses_no_answers(run, tmp_path):
    _, output = run("--limit=2")
    scores = output("colours/scores.json")
    answers = lines(tmp_path / "out/colours/answers.jsonl")
    assert (len(answers), scores["limit"], scores["headline"]) == (2, 2, "mean_of_items")
    assert scores["metrics"]["mean_of_items"] == 50 * sum(len(answer["text"]) % 2 == 0 for answer in answers)
    assert not (tmp_path / "out/letters/submission.json").exists()
    run()
    whole = lines(tmp_path / "out/colours/answers.jsonl")
    assert whole[:2] == answers
    run("--limit=2")
    assert lines(tmp_path / "out/colours/answers.jsonl") == whole
    assert set(output("colours/scores.json")["items"]) == {"1", "two"}


def test_results_of_several_calls_stand_side_by_side_and_cost_no_second_answer(run, monkeypatch):
    run(benchmarks=[Colours()])
    run(benchmarks=[Letters()])
    monkeypatch.delattr(answering, "load_model")
    complete, output = run()
    assert complete
    assert list(output("summary.json")["benchmarks"]) == ["colours", "letters"]


def test_another_models_output_is_refused(run, checkpoint, tmp_path):
    run()
    other = shutil.copytree(checkpoint, tmp_path / "other")
    with pytest.raises(UserError, match=r"summary\.json tells of another model"):
        run(f"--model-path={other}")


def run_ranks(arguments, count, output, die_after=None):
    """Runs so many ranks, by torchrun where there are several; each may be killed while it writes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if die_after is not None:
        environment["DIE_AFTER"] = str(die_after)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"] if count > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.eval.colours", *arguments, f"--output={output}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_ranks_killed_while_they_write_and_continued_by_another_number_lose_and_double_nothing(
    run, arguments, data, tmp_path
):
    shown = [{"question_id": i, "image": f"{'abc'[i % 3]}.png", "text": "So? " * (1 + i % 5)} for i in range(30)]
    (data / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))
    run()
    whole, output = tmp_path / "out", tmp_path / "interrupted"
    assert run_ranks(arguments, 2, output, die_after=4).returncode != 0
    assert list((output / "colours").glob("answers.jsonl.part-*"))
    assert run_ranks(arguments, 1, output, die_after=3).returncode == -signal.SIGKILL
    continued = run_ranks(arguments, 2, output)
    assert continued.returncode == 0, continued.stderr
    for name in ("colours", "letters"):
        assert (output / name / "answers.jsonl").read_bytes() == (whole / name / "answers.jsonl").read_bytes()
    assert not list(output.rglob("*.part-*"))
    assert read(output / "colours/scores.json")["items"] == read(whole / "colours/scores.json")["items"]
    assert read(output / "colours/scores.json")["made_with"]["ranks"] == 2
