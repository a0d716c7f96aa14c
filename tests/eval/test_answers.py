"""Answers files: appended, continued, repaired, and refused where they belong to something else."""

import json

import pytest

from llava_sp.eval.answers import AnswersFile, read_answers, record
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError

SETTINGS = {"model_path": "/models/a", "temperature": 0.2, "top_p": None}


def question(key):
    return Question(key, f"question {key}")


def answer(key):
    return record(question(key), f"answer {key}", "a")


def ids(path):
    return [json.loads(line)["question_id"] for line in path.read_text().splitlines()]


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
    assert ids(path) == [3, "one", 2]
    answers.finish([question("one"), question(2), question(3)])
    assert path.read_text().splitlines() == [json.dumps(answer(key)) for key in ("one", 2, 3)]


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_half_written_last_line_is_dropped(cut, tmp_path):
    path = tmp_path / "answers.jsonl"
    write_three(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    answers = AnswersFile(path, SETTINGS)
    assert answers.remaining([question(key) for key in (2, "one", 3, 2)]) == [question(2)]
    answers.append(answer(2))
    assert path.read_bytes() == whole


def test_several_ranks_write_parts_that_are_joined_without_loss_or_doubles(tmp_path):
    path = tmp_path / "answers.jsonl"
    questions = [question(key) for key in range(7)]
    ranks = [AnswersFile(path, SETTINGS, rank=rank, ranks=3) for rank in range(3)]
    for rank, answers in enumerate(ranks):
        for key in range(rank, 6, 3):
            answers.append(answer(key))
    ranks[1].append_failure(questions[6], "no such image")
    part = tmp_path / "answers.jsonl.part-2"
    part.write_bytes(part.read_bytes()[:-9])  # the last rank was killed while it wrote its last answer, number 5

    ranks = [AnswersFile(path, SETTINGS, rank=rank, ranks=2) for rank in range(2)]
    assert not list(tmp_path.glob("*.part-*"))
    for answers in ranks:
        assert answers.remaining(questions) == [questions[5], questions[6]]
    ranks[0].append(answer(5))
    ranks[1].append_failure(questions[6], "no such image")
    ranks[0].finish(questions)
    assert ids(path) == [0, 1, 2, 3, 4, 5]
    assert [item.text for item in read_answers(path)] == [f"answer {key}" for key in range(6)]
    failure = {"question_id": 6, "prompt": "question 6", "failure": "no such image"}
    assert json.loads((tmp_path / "answers.jsonl.failures.jsonl").read_text()) == failure


def test_a_part_is_taken_in_once_if_a_crash_left_it_behind(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswersFile(path, SETTINGS, rank=0, ranks=2).append(answer(1))
    part = tmp_path / "answers.jsonl.part-0"
    left_behind = part.read_bytes()
    AnswersFile(path, SETTINGS)
    part.write_bytes(left_behind)
    AnswersFile(path, SETTINGS).finish([question(1), question(2)])
    assert ids(path) == [1]


def test_a_question_that_failed_is_tried_again_and_its_answer_wins(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswersFile(path, SETTINGS).append_failure(question(1), "out of memory")
    answers = AnswersFile(path, SETTINGS)
    assert answers.remaining([question(1)]) == [question(1)]
    answers.append(answer(1))
    answers = AnswersFile(path, SETTINGS)
    answers.finish([question(1)])
    assert (answers.failed, ids(path)) == ({}, [1])


def test_one_question_asked_twice_is_answered_once_and_stands_there_twice(tmp_path):
    path = tmp_path / "answers.jsonl"
    twice = [question(1), question(2), question(1)]
    answers = AnswersFile(path, SETTINGS)
    assert answers.remaining(twice) == twice[:2]
    for key in (1, 2):
        answers.append(answer(key))
    answers.finish(twice)
    assert ids(path) == [1, 2, 1]


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
    with pytest.raises(UserError, match=r"Cannot write .*answers\.jsonl"):
        AnswersFile(tmp_path / "file" / "answers.jsonl", SETTINGS).append(answer(1))


def test_answers_of_llava_are_read_too(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"question_id": 1, "text": "No", "model_id": "x"}\n\n{"question_id": "b", "prompt": "?", "text": ""}'
    )
    first, second = read_answers(path)
    assert (first.key, first.text, first.fields["model_id"]) == ((1, ""), "No", "x")
    assert (second.key, second.text) == (("b", "?"), "")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('{"question_id": 2, "te', "line 2 is half written"),
        ('{"question_id": 2, "te\n{"question_id": 3, "text": "a"}\n', "line 2 is not JSON"),
        ('{"question_id": 2}\n', "line 2 is not an answer"),
        ('{"question_id": [2], "text": "a"}\n', "line 2 is not an answer"),
        ('{"question_id": 2, "text": 5}\n', "line 2 is not an answer"),
    ],
)
def test_what_is_no_answers_file_is_told_by_the_line(end, message, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer(1)) + "\n" + end)
    with pytest.raises(UserError, match=message):
        read_answers(path)
