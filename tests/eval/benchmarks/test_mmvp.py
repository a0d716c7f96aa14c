"""MMVP: pairs and single answers, with the published key and the corrected one."""

import json

import pytest

from llava_sp.eval.answers import read_answers
from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.mmvp import extract
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

MMVP, ROOT = BENCHMARKS["mmvp"], FIXTURES / "mmvp"


def test_score():
    # rows 1 and 2 are right; rows 99 and 100 only with the keys the right way round
    scores = MMVP.score(answers_to("mmvp"), ROOT)
    assert scores.metrics == {"pairs": 50, "single": 50, "pairs_corrected": 100, "single_corrected": 100}
    assert scores.items == {"1": 1, "2": 1, "99": 0, "100": 0}
    assert MMVP.score(answers_to("mmvp"), ROOT, strict=True).metrics == scores.metrics


def test_a_missing_answer_shifts_the_pairs_but_not_for_strict():
    answers = without(answers_to("mmvp"), 0)
    # by position, 2 and 99 are a pair, and 100 is alone
    assert MMVP.score(answers, ROOT).metrics == {
        "pairs": 0,
        "single": pytest.approx(100 / 3),
        "pairs_corrected": 100,
        "single_corrected": 100,
    }
    strict = MMVP.score(answers, ROOT, strict=True)
    assert strict.metrics == {"pairs": 0, "single": 25, "pairs_corrected": 50, "single_corrected": 75}
    assert strict.notes == {"missing": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A", "a"), ("(b)", "b"), ("(A).", "a"), ("The answer is: (a)", ": (a"), ("Answer: Open.", "open"), ("", "")],
)
def test_extract(text, expected):
    assert extract(text) == expected


def test_submission_is_what_its_own_grader_takes(tmp_path):
    MMVP.submission(answers_to("mmvp"), ROOT, tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[3])
    assert MMVP.score(read_answers(tmp_path / "out.jsonl"), ROOT).metrics["pairs_corrected"] == 100
    assert (row["question_id"], row["answer"], row["response"]) == (100, "(b)", "The answer is long.")
    assert row["prompt"].startswith("Are the tusks long or short?")


@pytest.mark.parametrize("content", ["", "Index,Question\n1,What?\n", "I,Q,O,A\n1,What?,(a) x (b) y,(c)\n"])
def test_other_files_are_refused(content, tmp_path):
    root = copy_of("mmvp", tmp_path)
    (root / "Questions.csv").write_text(content)
    with pytest.raises(UserError, match=r"Questions\.csv does not hold MMVP's"):
        MMVP.questions(root)
