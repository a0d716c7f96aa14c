"""Question files: what is read, how they are split, and what is refused."""

import json

import pytest

from llava_sp.eval.questions import Question, check_images, read_questions, take_chunk
from llava_sp.utils.errors import UserError
from tests.eval.conftest import QUESTIONS


def test_a_file_is_read_in_order_with_and_without_images(question_file):
    assert read_questions(question_file) == QUESTIONS


def test_further_keys_and_empty_lines_are_allowed(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1, "image": "a.png", "text": "Cat?", "category": "popular"}\n\n')
    assert read_questions(path) == [Question(1, "Cat?", "a.png")]


def test_questions_about_one_image_may_share_its_id(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [{"question_id": "a", "image": "a.png", "text": text} for text in ("Cat?", "Dog?", "Cat?")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [question.key for question in read_questions(path)] == [("a", "Cat?"), ("a", "Dog?"), ("a", "Cat?")]


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("num_chunks", range(1, 9))
def test_chunks_are_a_balanced_partition(count, num_chunks):
    questions = [Question(i, "?") for i in range(count)]
    chunks = [take_chunk(questions, num_chunks, index) for index in range(num_chunks)]
    assert [question for chunk in chunks for question in chunk] == questions
    lengths = [len(chunk) for chunk in chunks]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("num_chunks", "index"), [(4, 4), (4, -1), (0, 0)])
def test_a_chunk_that_does_not_exist_is_refused(num_chunks, index):
    with pytest.raises(UserError, match=f"--chunk-idx {index}"):
        take_chunk(QUESTIONS, num_chunks, index)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 2, "text": "cut o', "line 2 is not valid JSON"),
        ("[1, 2]", "line 2 must be an object"),
        ('{"text": "Cat?"}', "line 2: question_id .* not nothing"),
        ('{"question_id": [2], "text": "Cat?"}', r"line 2: question_id .* not \[2\]"),
        ('{"question_id": true, "text": "Cat?"}', "line 2: question_id .* not True"),
        ('{"question_id": 2}', "line 2: text .* not nothing"),
        ('{"question_id": 2, "text": " "}', "line 2: text"),
        ('{"question_id": 2, "text": "Cat?", "image": 5}', "line 2: image .* not 5"),
        ('{"question_id": 2, "text": "<image>\\nCat?", "image": "a.png"}', "line 2: text must not hold '<image>'"),
        ('{"question_id": 1, "text": "Dog?", "image": "a.png"}', "line 2: .* 1 is there twice, .* another image"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(line, message, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question_id": 1, "text": "Dog?"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        read_questions(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_questions(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question_id": 1, "text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl is not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("image", ["missing.png", "../secret.png", "/etc/passwd"])
def test_images_that_are_not_there_or_not_inside_are_found_early(image, image_folder):
    with pytest.raises(UserError, match=image):
        check_images([*QUESTIONS, Question(9, "What?", image)], image_folder)
    check_images(QUESTIONS, image_folder)
