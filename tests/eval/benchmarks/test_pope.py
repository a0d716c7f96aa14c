"""POPE: parsing, and answers that meet labels by position or by id."""

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.pope import says_yes
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

POPE, ROOT = BENCHMARKS["pope"], FIXTURES / "pope"


def category(scores, name):
    keys = ("f1", "accuracy", "precision", "recall", "yes_ratio")
    return [scores.metrics[f"{name}_{key}"] for key in keys]


def test_score():
    scores = POPE.score(answers_to("pope"), ROOT)
    # adversarial: one of each kind; popular: all right; random: two hits, one true no, "Maybe" is a false yes
    assert category(scores, "adversarial") == [50, 50, 50, 50, 50]
    assert category(scores, "popular") == [100, 100, 100, 100, 50]
    assert category(scores, "random") == pytest.approx([80, 75, 200 / 3, 100, 75])
    assert scores.metrics["f1"] == pytest.approx((50 + 100 + 80) / 3)
    assert scores.categories == {"adversarial": 50, "popular": 100, "random": pytest.approx(80)}
    assert scores.notes == {"unparsable": 1}
    assert POPE.score(answers_to("pope"), ROOT, strict=True).metrics == scores.metrics


def test_a_missing_answer_shifts_the_labels_but_not_for_strict():
    answers = without(answers_to("pope"), 6)  # the first no of popular
    # yes, yes, no meet yes, yes, no: nothing wrong is seen
    assert category(POPE.score(answers, ROOT), "popular") == pytest.approx([100, 100, 100, 100, 200 / 3])
    strict = POPE.score(answers, ROOT, strict=True)
    # the missing one is a false yes: two hits of three, both found
    assert category(strict, "popular") == pytest.approx([80, 75, 200 / 3, 100, 75])
    assert strict.notes == {"missing": 1, "unparsable": 1}
    assert strict.items["6"] == 0


def test_the_order_of_answers_decides_but_not_for_strict():
    answers = list(reversed(answers_to("pope")))
    assert category(POPE.score(answers, ROOT), "popular")[0] == 0
    assert category(POPE.score(answers, ROOT, strict=True), "popular")[0] == 100


def test_a_category_without_hits_is_zero():
    answers = [answer for answer in answers_to("pope") if not says_yes(answer.text)]
    assert category(POPE.score(answers, ROOT), "random") == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not. Yes", False),
        ("Yes. No", True),
        ("NO", True),  # only these spellings
        ("nothing", True),
        ("", True),
    ],
)
def test_says_yes(text, yes):
    assert says_yes(text) is yes


def test_labels_of_other_questions_are_refused_by_strict(tmp_path):
    root = copy_of("pope", tmp_path)
    path = root / "coco/coco_pope_popular.json"
    path.write_text(path.read_text().replace("a cup", "a mug"))
    with pytest.raises(UserError, match="question 6 is not among the labels of 'popular'"):
        POPE.score(answers_to("pope"), root, strict=True)


def test_a_half_written_file_is_refused_by_line(tmp_path):
    root = copy_of("pope", tmp_path)
    path = root / "coco/coco_pope_popular.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"coco_pope_popular\.json, line 4 is not valid JSON"):
        POPE.score(answers_to("pope"), root)
