"""VQAv2: the file for the server, and the validation score."""

import json

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

TEST, VAL = BENCHMARKS["vqav2"], BENCHMARKS["vqav2_val"]


def test_the_server_gets_every_test_question(tmp_path):
    TEST.submission(answers_to("vqav2"), FIXTURES / "vqav2", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"question_id": 1000, "answer": "red"},
        {"question_id": 1001, "answer": "2 dogs and cat"},
        {"question_id": 1002, "answer": ""},
    ]


def test_validation():
    # surfboard: 3 of 10 gave it, 0.9; two: people agree, so theirs is not made 2; yes: 1 of 10, 0.3
    scores = VAL.score(answers_to("vqav2_val"), FIXTURES / "vqav2_val")
    assert scores.metrics == {"accuracy": pytest.approx(100 * (0.9 + 0 + 0.3) / 3)}
    assert scores.categories == {"other": pytest.approx(90), "number": 0, "yes/no": pytest.approx(30)}
    assert scores.items == {"42000": pytest.approx(0.9), "42001": 0, "42002": pytest.approx(0.3)}


def test_a_missing_answer_stops_the_evaluator_and_is_wrong_for_strict():
    answers = without(answers_to("vqav2_val"), 0)
    with pytest.raises(UserError, match=r"1 answers to VQAv2 val are missing, the first to 42000.*--strict"):
        VAL.score(answers, FIXTURES / "vqav2_val")
    scores = VAL.score(answers, FIXTURES / "vqav2_val", strict=True)
    assert scores.metrics == {"accuracy": pytest.approx(10)}
    assert scores.notes == {"missing": 1}


def test_other_files_are_refused_by_name(tmp_path):
    root = copy_of("vqav2_val", tmp_path)
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        (root / name).write_text('{"images": []}')
    with pytest.raises(UserError, match=r"questions.json does not hold"):
        VAL.questions(root)
    with pytest.raises(UserError, match=r"annotations.json does not hold"):
        VAL.score(answers_to("vqav2_val"), root)
