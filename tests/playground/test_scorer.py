"""Scores beside what needs no image."""

import json

import pytest

from llava_sp.playground.scorer import score_answers
from llava_sp.utils.errors import UserError

TRUTH = [
    ("a", "position", "Where is the {colour} {shape}?", "top left"),
    ("b", "position", "Where is the {colour} {shape}?", "top left"),
    ("c", "position", "Where is the {colour} {shape}?", "top right"),
    ("d", "position", "Where is the digit {digit}?", "middle center"),
    ("e", "existence", "Is there a digit {digit}?", "Yes"),
    ("f", "existence", "Is there a digit {digit}?", "No"),
]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def annotations(tmp_path):
    keys = ("question_id", "task", "form", "answer")
    return write_lines(tmp_path / "annotations.jsonl", [dict(zip(keys, line, strict=True)) for line in TRUTH])


def answers(tmp_path, **texts):
    records = [{"question_id": name, "text": text} for name, text in texts.items()]
    return write_lines(tmp_path / "answers.jsonl", records)


def test_scores_stand_beside_chance_and_the_commonest_answer(tmp_path, annotations):
    given = answers(tmp_path, f="no", a="top left", b="top left.", c="top left", d="middle", e="No")
    position, existence, mean = score_answers(given, annotations)
    assert (position.task, position.count, position.accuracy) == ("position", 4, 0.5)
    assert position.chance == pytest.approx((3 * 1 / 2 + 1) / 4)
    assert position.commonest == pytest.approx((2 + 1) / 4)
    assert (existence.task, existence.accuracy, existence.chance, existence.commonest) == ("existence", 0.5, 0.5, 0.5)
    assert (mean.task, mean.count, mean.accuracy) == ("mean", 6, 0.5)
    assert mean.commonest == pytest.approx((0.75 + 0.5) / 2)
    assert existence.margin == pytest.approx(0.4055, abs=1e-4)  # Wilson's interval of 1 in 2 is 0.0945 to 0.9055


def test_missing_answers_are_named(tmp_path, annotations):
    with pytest.raises(UserError, match=r"answers.jsonl lacks 5 of 6 answers, the first b"):
        score_answers(answers(tmp_path, a="top left"), annotations)


def test_bad_files_are_named(tmp_path, annotations):
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        score_answers(tmp_path / "nowhere.jsonl", annotations)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question_id": "a", "text": "x"}\n{"question_id": "b", "te')
    with pytest.raises(UserError, match=r"broken\.jsonl, line 2 is not valid JSON"):
        score_answers(broken, annotations)
    broken.write_text('{"question_id": "a"}\n')
    with pytest.raises(UserError, match=r"broken\.jsonl, line 1 must be an object with question_id, text"):
        score_answers(broken, annotations)
    broken.write_text("")
    with pytest.raises(UserError, match=r"broken\.jsonl is empty"):
        score_answers(broken, annotations)
