"""The soft score: both evaluators, where they differ, and what is odd about them."""

import pytest

from llava_sp.eval.benchmarks.vqa_accuracy import normalise, official_score, soft_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red.", "red"),
        ("two dogs, and a cat", "2 dogs and cat"),
        ("None", "0"),
        ("1,000 people", "1000 people"),
        ("a well-known man", "well known man"),
        ("yes - no", "yes no"),
        ("3.5 m.", "3.5 m"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("somebody'd", "somebodyd"),
        ("the cat's hat", "cat 's hat"),
        ("on\nthe\ttable?", "on table"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_of_full_stops_32_go_and_strict_removes_all():
    text = "a" + 40 * "."
    assert normalise(text) == "a" + 8 * "."
    assert normalise(text, strict=True) == ""  # the article


@pytest.mark.parametrize(("agree", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_others_count_not_the_person_who_gave_the_answer(agree, score):
    assert soft_score("a", ["a"] * agree + ["b"] * (10 - agree)) == pytest.approx(score, abs=1e-12)


def test_where_people_agree_vqav2_does_not_prepare_their_answers():
    agreed = ["two"] * 10
    assert official_score("two", agreed) == 0
    assert soft_score(normalise("two"), [normalise(answer) for answer in agreed]) == 1


def test_vqav2_prepares_what_people_say_only_in_part():
    answers = ["a board!"] * 5 + ["board"] * 5
    assert official_score("board", answers) == 1  # from the five without an article
    assert official_score("board", ["the board!"] * 9 + ["x"]) == 0
    assert official_score("2", ["two"] * 9 + ["x"]) == 0
