"""MME: questions found by their prompts, pairs by position or by image."""

from dataclasses import replace

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.mme import COGNITION, verdict
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, with_text, without

MME, ROOT = BENCHMARKS["mme"], FIXTURES / "mme"


def test_score():
    scores = MME.score(answers_to("mme"), ROOT)
    # existence: 3 of 4 and 1 of 2 pairs; count: 1 of 2, no pair; "I think Yes" has neither word in four letters
    assert scores.categories["existence"] == 75 + 50
    assert scores.categories["count"] == 50
    assert scores.categories["OCR"] == 0
    assert all(scores.categories[name] == 200 for name in (*COGNITION, "color", "artwork"))
    assert scores.metrics == {"perception": 125 + 50 + 0 + 7 * 200, "cognition": 800, "total": 2375}
    assert scores.notes == {"unparsable": 2}
    assert len(scores.items) == 30
    assert MME.score(answers_to("mme"), ROOT, strict=True).metrics == scores.metrics


def test_the_order_of_answers_decides_the_pairs_but_not_for_strict():
    answers = with_text(answers_to("mme"), 1, "Yes")  # each image of existence has one wrong answer: 1 and 2
    assert MME.score(answers, ROOT).categories["existence"] == 50
    moved = [answers[place] for place in (0, 3, 1, 2)] + answers[4:]
    assert MME.score(moved, ROOT).categories["existence"] == 100
    assert MME.score(moved, ROOT, strict=True).categories["existence"] == 50


def test_missing_answers_stop_it_and_are_wrong_for_strict():
    answers = without(answers_to("mme"), 0)
    with pytest.raises(UserError, match="MME's 'existence' has 3 answers"):
        MME.score(answers, ROOT)
    strict = MME.score(answers, ROOT, strict=True)
    assert strict.categories["existence"] == 50
    assert strict.notes == {"missing": 1, "unparsable": 2}
    with pytest.raises(UserError, match="MME's 'count' has 0 answers"):
        MME.score([answer for answer in answers_to("mme") if "count" not in answer.question_id], ROOT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", True),
        ("no.", False),
        ("NOT so", False),
        ("now", False),
        ("eyes", True),
        ("I think no", None),
        ("", None),
    ],
)
def test_verdict(text, expected):
    assert verdict(text) is expected


def test_an_unknown_question_is_named():
    answers = answers_to("mme")
    with pytest.raises(UserError, match=r"no question 'Is it so\?' about 'existence/0000.png'"):
        MME.score([replace(answers[0], prompt="Is it so?")], ROOT)


def test_submission(tmp_path):
    answers = answers_to("mme")
    MME.submission([replace(answers[0], text="Yes,\nit\tis"), *answers[1:]], ROOT, tmp_path / "out")
    first, *_ = (tmp_path / "out/existence.txt").read_text().splitlines()
    assert first == "0000.txt\tIs this existence number 0 right? Please answer yes or no.\tYes\tYes, it is"
    coding = (tmp_path / "out/code_reasoning.txt").read_text()
    assert "right?  Please" in coding  # with two blanks, as the data have it


def test_other_data_are_refused(tmp_path):
    root = copy_of("mme", tmp_path)
    (root / "MME_Benchmark_release_version/count/0000.txt").write_text("Is it so?\tmaybe\n")
    with pytest.raises(UserError, match=r"count/0000\.txt: .* is not a question and Yes or No"):
        MME.score(answers_to("mme"), root)
    (tmp_path / "empty/MME_Benchmark_release_version").mkdir(parents=True)
    with pytest.raises(UserError, match="no folder of an MME category"):
        MME.score(answers_to("mme"), tmp_path / "empty")
