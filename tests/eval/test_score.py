"""`python -m llava_sp.eval.score`, as a user calls it."""

import json

import pytest

from llava_sp.eval import score
from tests.eval.benchmarks.conftest import judge  # noqa: F401 - a fixture
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, without, write_answers


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def call(name, *flags, answers=None, output="scores.json"):
        answers = answers or FIXTURES / name / "answers.jsonl"
        command = [
            name,
            "--answers-file",
            answers,
            "--data-root",
            FIXTURES / name,
            "--output",
            tmp_path / output,
            *flags,
        ]
        monkeypatch.setattr("sys.argv", ["score", *map(str, command)])
        try:
            score.main()
            status = 0
        except SystemExit as error:
            status = error.code
        streams = capsys.readouterr()
        return status, streams.out, streams.err

    return call


def test_scores_are_printed_and_written(run, tmp_path):
    status, out, _ = run("pope")
    assert status == 0
    head, first, *_ = out.splitlines()
    assert head.startswith("POPE: ") and first.split() == ["f1", "76.67"]
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["benchmark"] == "pope"
    assert found["metrics"]["f1"] == pytest.approx(230 / 3)
    assert found["strict"] is False
    assert len(found["answers_sha256"]) == 64


def test_the_data_are_in_the_folder_of_all_benchmarks_or_in_their_own(run, tmp_path):
    written = []
    for root in (FIXTURES, FIXTURES / "pope"):
        status, _, _ = run("pope", "--data-root", root)
        assert status == 0
        written.append((tmp_path / "scores.json").read_bytes())
    assert written[0] == written[1]


def test_strict(run, tmp_path):
    answers = write_answers(tmp_path / "answers.jsonl", without(answers_to("gqa"), 0))
    status, _, err = run("gqa", answers=answers)
    assert status == 2 and "1 answers to GQA are missing" in err
    assert not (tmp_path / "scores.json").exists()
    status, out, _ = run("gqa", "--strict", answers=answers)
    assert status == 0 and "missing: 1" in out


def test_a_servers_benchmark_writes_the_file_to_hand_in(run, tmp_path):
    status, out, _ = run("vizwiz", output="upload.json")
    assert status == 0 and "is to be handed in to the server of VizWiz test" in out
    assert len(json.loads((tmp_path / "upload.json").read_text())) == 2


def test_scores_and_a_file_to_hand_in_beside_them(run, tmp_path):
    status, out, _ = run("mmbench")
    assert status == 0 and "scores.submission.xlsx" in out
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "scores.submission.xlsx"}


def test_a_judges_reviews_lie_beside_the_scores(run, judge, tmp_path):  # noqa: F811
    status, out, _ = run("llava_bench")
    assert status == 0 and "judge: stub" in out
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "scores.reviews.jsonl"}
    assert len((tmp_path / "scores.reviews.jsonl").read_text().splitlines()) == len(judge.requests) == 3


def test_a_judge_that_is_not_named_is_asked_for(run, monkeypatch):
    for name in ("JUDGE_MODEL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    status, _, err = run("llava_bench")
    assert status == 2 and "A judge scores this" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "text": "a"', "line 1 is half written"),
        ('[{"questionId": "201", "prediction": "yes"}]\n', "line 1 is not an answer"),
        ("", "the file is empty"),
    ],
)
def test_other_answers_files_are_refused(run, tmp_path, content, message):
    answers = tmp_path / "answers.jsonl"
    answers.write_text(content)
    status, _, err = run("gqa", answers=answers)
    assert status == 2 and message in err


def test_answers_to_another_benchmark_and_unknown_names_are_refused(run, tmp_path):
    status, _, err = run("gqa", answers=FIXTURES / "pope" / "answers.jsonl")
    assert status == 2 and "The answers are not to GQA" in err
    status, _, err = run("gqa", answers=tmp_path / "nowhere.jsonl")
    assert status == 2 and "nowhere.jsonl" in err
    status, _, err = run("popo", answers=FIXTURES / "pope" / "answers.jsonl")
    assert status == 2 and "no benchmark 'popo'" in err


def test_a_place_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = run("pope", output="file/scores.json")
    assert status == 2 and "file" in err
