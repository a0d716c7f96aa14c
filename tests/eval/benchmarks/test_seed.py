"""SEED-Bench: exact letters, images and videos."""

import json
from dataclasses import replace

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

SEED, ROOT = BENCHMARKS["seed"], FIXTURES / "seed"


def test_score():
    # "B." is not the letter
    scores = SEED.score(answers_to("seed"), ROOT)
    assert scores.metrics == {"image": pytest.approx(200 / 3), "all": pytest.approx(200 / 3)}
    assert scores.categories == {"Scene Understanding": 50, "Instances Counting": 100}
    assert scores.notes == {"unparsable": 1}


def test_videos_count_where_they_are_answered_and_missing_answers_are_wrong():
    answers = answers_to("seed")
    video = replace(answers[0], question_id="v1", text="D")
    assert SEED.score([*answers, video], ROOT).metrics == {"image": pytest.approx(200 / 3), "video": 100, "all": 75}
    scores = SEED.score(without(answers, 0), ROOT)
    assert scores.metrics["image"] == pytest.approx(100 / 3)
    assert scores.notes == {"missing": 1, "unparsable": 1}


def test_frames_of_videos_are_not_asked_about():
    assert [question.image for question in SEED.questions(ROOT)] == [
        f"SEED-Bench-image/d{key}" for key in (101669, 101670, 101671)
    ]


def test_submission(tmp_path):
    SEED.submission(without(answers_to("seed"), 2), ROOT, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "101670", "prediction": "B."},
        {"question_id": "101671", "prediction": ""},
    ]


@pytest.mark.parametrize("content", ["[]", '{"question_type": {}, "questions": []}', '{"questions": [{"a": 1}]}'])
def test_other_files_are_refused(content, tmp_path):
    root = copy_of("seed", tmp_path)
    (root / "SEED-Bench.json").write_text(content)
    with pytest.raises(UserError, match="does not hold SEED-Bench's questions"):
        SEED.score(answers_to("seed"), root)
