"""VizWiz: the file for the server, and the validation score."""

import json

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

TEST, VAL = BENCHMARKS["vizwiz"], BENCHMARKS["vizwiz_val"]


def test_the_server_gets_every_question(tmp_path):
    TEST.submission(answers_to("vizwiz"), FIXTURES / "vizwiz", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "dark blue i think"},
    ]


def test_nothing_is_written_where_an_answer_is_missing(tmp_path):
    with pytest.raises(UserError, match="1 answers to VizWiz test are missing, the first to 0"):
        TEST.submission(without(answers_to("vizwiz"), 0), FIXTURES / "vizwiz", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_validation():
    scores = VAL.score(answers_to("vizwiz_val"), FIXTURES / "vizwiz_val")
    assert scores.metrics == {"accuracy": 50}
    assert scores.categories == {"unanswerable": 100, "other": 0}


def test_another_file_is_refused(tmp_path):
    root = copy_of("vizwiz_val", tmp_path)
    (root / "val.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(UserError, match=r"val.json does not hold VizWiz's"):
        VAL.questions(root)
