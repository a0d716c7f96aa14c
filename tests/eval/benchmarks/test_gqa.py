"""GQA."""

import json

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

GQA, ROOT = BENCHMARKS["gqa"], FIXTURES / "gqa"


def test_score():
    # "Yes." and "Cup.." lose their full stops; "dog " keeps its blank and is wrong; 204 is not of the balanced set
    scores = GQA.score(answers_to("gqa"), ROOT)
    assert scores.metrics == {"accuracy": pytest.approx(200 / 3), "binary": 50, "open": 100}
    assert scores.categories == {"choose": 0, "query": 100, "verify": 100}
    assert scores.items == {"201": 1, "202": 1, "203": 0}


def test_a_missing_answer_stops_the_evaluator_and_is_wrong_for_strict():
    answers = without(answers_to("gqa"), 0)
    with pytest.raises(UserError, match="1 answers to GQA are missing, the first to '201'"):
        GQA.score(answers, ROOT)
    assert GQA.score(answers, ROOT, strict=True).metrics["accuracy"] == pytest.approx(100 / 3)


def test_submission(tmp_path):
    GQA.submission(answers_to("gqa"), ROOT, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())[:2] == [
        {"questionId": "201", "prediction": "yes"},
        {"questionId": "202", "prediction": "cup"},
    ]


def test_another_file_is_refused(tmp_path):
    root = copy_of("gqa", tmp_path)
    (root / "data/testdev_balanced_questions.json").write_text("[1]")
    with pytest.raises(UserError, match="does not hold GQA's questions"):
        GQA.score(answers_to("gqa"), root)
