"""The paired bootstrap, against what can be told by hand."""

import math

import numpy as np
import pytest

from llava_sp.eval.report.compare import Comparison, compare, paired_bootstrap
from llava_sp.eval.report.results import Result, read_output
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import answers_to, with_text


def result(items, **fields):
    value = 100 * sum(items.values()) / len(items)
    told = {"benchmark": "b", "title": "B", "headline": "mean", "metrics": {"mean": value}, "items": items, "rule": "r"}
    return Result(told | fields, [])


def same(score, count=40):
    return {str(number): float(score) for number in range(count)}


def test_equal_results_have_an_interval_of_nothing():
    items = {str(number): float(number % 3 == 0) for number in range(40)}
    found = compare(result(items), result(items))
    assert (found.headline, found.mean, found.low, found.high, found.questions, found.notes) == (0, 0, 0, 0, 40, [])
    assert found.verdict("one", "other") == "no difference told from noise"


def test_all_right_against_all_wrong_is_a_hundred():
    found = compare(result(same(1)), result(same(0)))
    assert (found.headline, found.mean, found.low, found.high) == (100, 100, 100, 100)
    assert found.verdict("one", "other") == "one is better"
    found = compare(result(same(0)), result(same(1)))
    assert (found.low, found.high) == (-100, -100)
    assert found.verdict("one", "other") == "other is better"


def test_the_interval_is_the_normal_ones_where_that_holds():
    """One is right alone in 240 of 2000 questions, the other in 160: the differences' variance is known."""
    differences = np.array([1.0] * 240 + [-1.0] * 160 + [0.0] * 1600)
    difference, low, high = paired_bootstrap(differences, [str(number) for number in range(2000)])
    half = 1.96 * math.sqrt((400 / 2000 - 0.04**2) / 2000)
    assert difference == pytest.approx(0.04)
    assert (low, high) == (pytest.approx(0.04 - half, abs=0.001), pytest.approx(0.04 + half, abs=0.001))


def test_prompts_that_share_a_question_are_drawn_together():
    """500 pairs whose differences go together vary like 500 questions, not like 1000."""
    differences = np.repeat(np.array([1.0, -1.0] * 250), 2)
    together = paired_bootstrap(differences, [str(number // 2) for number in range(1000)])
    apart = paired_bootstrap(differences, [str(number) for number in range(1000)])
    assert together[2] == pytest.approx(1.96 / math.sqrt(500), abs=0.004)
    assert apart[2] == pytest.approx(1.96 / math.sqrt(1000), abs=0.004)


def test_questions_of_uneven_size_weigh_by_their_prompts():
    assert paired_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])[0] == 0.75


def test_the_same_draws_each_time():
    differences = np.array([1.0, 0.0, -1.0, 1.0])
    assert paired_bootstrap(differences, list("abcd")) == paired_bootstrap(differences, list("abcd"))


def test_only_common_questions_count():
    one, other = result(same(1) | {"own": 0.0}), result(same(1) | {"theirs": 1.0})
    found = compare(one, other)
    assert (found.mean, found.questions) == (0, 40)
    assert found.headline == pytest.approx(-100 / 41)
    assert found.notes == ["2 scores of questions that only one of them has are left out."]
    with pytest.raises(UserError, match="B: the two have no scored question in common"):
        compare(result({"own": 1.0}), result({"theirs": 1.0}))


def test_what_a_reader_must_know():
    one = result(same(1))
    assert compare(one, result(same(1), rule="another")).notes == ["Scored by different rules."]
    assert compare(one, result(same(1), details={"judge": "j"})).notes == ["Scored by different judges or prompts."]
    other_data = result(same(1), made_with={"data_sha256": {"questions": "other"}})
    assert compare(one, other_data).notes == ["Their data files differ."]
    assert compare(result(same(1, 29)), result(same(1, 29))).notes == [
        "29 questions are too few to rely on the interval."
    ]
    found = compare(one, result(same(1), headline="f1", metrics={"f1": 100}))
    assert found.headline is None
    assert found.notes == ["The figures are mean and f1, which cannot be compared."]


def test_a_headline_that_is_no_mean_of_scores_is_named():
    f1 = result(same(1), headline="f1", metrics={"f1": 90})
    assert compare(f1, f1).notes == ["f1 is not the mean of the questions' scores; the interval is of that mean."]


def test_grades_stay_grades():
    found = compare(result(same(7)), result(same(5)))
    assert (found.mean, found.low, found.high) == (2, 2, 2)
    assert "The mean is of a judge's grades, not in percent." in found.notes


def test_the_two_questions_about_an_image_of_mme_are_one(evaluated):
    one = read_output(evaluated("one", "mme")).results["mme"]
    other = read_output(evaluated("other", "mme", with_text(answers_to("mme"), 0, "No"))).results["mme"]
    found = compare(one, other)
    assert len(one.items) == 2 * found.questions
    assert found.mean == pytest.approx(100 / len(one.items))


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-1, 0, "no difference"), (0.1, 2, "one is"), (-2, -0.1, "other is")]
)
def test_verdict(low, high, verdict):
    assert Comparison("B", None, 0, low, high, 40, []).verdict("one", "other").startswith(verdict)
