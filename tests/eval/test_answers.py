"""Answers files: appended, continued, repaired, and refused where they belong to something else."""

import json

import pytest

from llava_sp.eval.answers import AnswersFile
from llava_sp.utils.errors import UserError

SETTINGS = {"model_path": "/models/a", "temperature": 0.2, "top_p": None}


def answer(key):
    return {"question_id": key, "text": f"answer {key}"}


def write_three(path):
    answers = AnswersFile(path, SETTINGS)
    for key in (3, "one", 2):
        answers.append(answer(key))
    return answers


def test_nothing_is_written_before_the_first_answer(tmp_path):
    AnswersFile(tmp_path / "new" / "answers.jsonl", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_each_answer_is_on_disk_at_once_and_the_end_brings_the_order(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    answers = write_three(path)
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()] == [3, "one", 2]
    answers.finish(["one", 2, 3])
    assert path.read_text().splitlines() == [json.dumps(answer(key)) for key in ("one", 2, 3)]


@pytest.mark.parametrize("cut", [1, 5, 28])
def test_a_half_written_last_line_is_dropped(cut, tmp_path):
    path = tmp_path / "answers.jsonl"
    write_three(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    answers = AnswersFile(path, SETTINGS)
    assert list(answers.answered) == [3, "one"]
    answers.append(answer(2))
    assert path.read_bytes() == whole


def test_answers_made_otherwise_are_refused_by_the_setting_that_differs(tmp_path):
    path = tmp_path / "answers.jsonl"
    write_three(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"temperature = 0\.2; now it is 0\.7"):
        AnswersFile(path, {**SETTINGS, "temperature": 0.7})
    with pytest.raises(UserError, match="model_path = '/models/a'"):
        AnswersFile(path, {**SETTINGS, "model_path": "/models/b"})
    assert path.read_bytes() == before


def test_files_of_unknown_origin_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer(1)) + "\n")
    with pytest.raises(UserError, match=r"without answers\.jsonl\.meta\.json"):
        AnswersFile(path, SETTINGS)
    with pytest.raises(UserError, match="is not a file"):
        AnswersFile(tmp_path, SETTINGS)


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"text": "no id"}', '{"question_id": []}'])
def test_a_line_that_is_no_answer_is_named(line, tmp_path):
    path = tmp_path / "answers.jsonl"
    write_three(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 4 is not an answer"):
        AnswersFile(path, SETTINGS)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the answers file .*answers\.jsonl"):
        AnswersFile(tmp_path / "file" / "answers.jsonl", SETTINGS).append(answer(1))
