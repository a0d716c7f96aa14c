"""LLaVA-Bench: what the judge reads, its grades, and how they are summed up."""

import json

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.llava_bench import grades_in
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

BENCH, ROOT = BENCHMARKS["llava_bench"], FIXTURES / "llava_bench"


def by_category(request):
    grades = {"conv": "8 6", "detail": "9, 6\nwell", "complex": "7 8"}
    return next(text for name, text in grades.items() if f"Grade both, {name}." in request["messages"][1]["content"])


def test_score(judge, tmp_path):
    judge.reply = lambda request: "9, 6" if "detail" in request["messages"][1]["content"] else by_category(request)
    judge.reply = lambda request: by_category(request).replace("9, 6", "9 6")
    scores = BENCH.score(answers_to("llava_bench"), ROOT, reviews=tmp_path / "reviews.jsonl")
    # the means of three are 8 and 6.667
    assert scores.metrics == {"all": 83.3}
    assert scores.categories == {"conv": 75.0, "detail": 66.7, "complex": 114.3}
    assert scores.items == {"0": 6, "1": 6, "2": 8}
    assert scores.details == {"judge": "stub", "system_message": "our own wording"}


def test_what_the_judge_reads(judge, tmp_path):
    root = copy_of("llava_bench", tmp_path)
    (root / "system.txt").write_text("Be fair.\n")
    scores = BENCH.score(answers_to("llava_bench"), root, reviews=tmp_path / "reviews.jsonl")
    assert scores.details["system_message"] == "system.txt"
    system, user = judge.requests[0]["messages"]
    assert system == {"role": "system", "content": "Be fair."}
    assert user["content"] == (
        "[Context]\nA beach.\nTwo people.\n\n[Question]\nWhat is the name of the place?\n\n"
        "[Assistant 1]\nGPT-4 says 0\n\n[End of Assistant 1]\n\n[Assistant 2]\nwe say 0\n\n[End of Assistant 2]\n\n"
        "[System]\nGrade both, conv.\n\n"
    )
    assert (judge.requests[0]["temperature"], judge.requests[0]["max_tokens"]) == (0.2, 1024)


def test_a_failed_review_is_minus_one_in_the_mean_but_not_for_strict(judge, tmp_path):
    judge.reply = lambda request: "Both are good." if "Grade both, detail." in str(request) else "8 4"
    scores = BENCH.score(answers_to("llava_bench"), ROOT, reviews=tmp_path / "reviews.jsonl")
    # (8 - 1 + 8) / 3 = 5, (4 - 1 + 4) / 3 = 2.333
    assert scores.metrics == {"all": 46.7}
    assert scores.categories["detail"] == 100
    strict = BENCH.score(answers_to("llava_bench"), ROOT, strict=True, reviews=tmp_path / "reviews.jsonl")
    assert strict.metrics == {"all": 50}
    assert "detail" not in strict.categories
    assert scores.notes == strict.notes == {"unparsable": 1}
    assert len(judge.requests) == 3  # the second time from disk


def test_a_missing_answer_shifts_the_others_but_not_for_strict(judge, tmp_path):
    judge.reply = lambda request: "8 8"
    answers = without(answers_to("llava_bench"), 0)
    scores = BENCH.score(answers, ROOT, reviews=tmp_path / "reviews.jsonl")
    assert list(scores.items) == ["0", "1"]
    assert "we say 1" in judge.requests[0]["messages"][1]["content"]  # as an answer to question 0
    del judge.requests[:]
    strict = BENCH.score(answers, ROOT, strict=True, reviews=tmp_path / "reviews.jsonl")
    assert list(strict.items) == ["0", "1", "2"]
    assert "[Assistant 2]\n\n\n[End" in judge.requests[0]["messages"][1]["content"]
    assert strict.notes == {"missing": 1}


@pytest.mark.parametrize(
    ("review", "grades"),
    [
        ("8 9\nbecause", (8, 9)),
        ("7.5,8", (7.5, 8)),
        ("7.5, 8", None),  # two blanks, where one is read
        ("8", None),
        ("8 9 10", None),
        ("eight nine", None),
        ("nan 8", None),
        ("", None),
    ],
)
def test_grades_in(review, grades):
    assert grades_in(review) == grades


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rule.json", "rule.json has no rule"),
        ("context.jsonl", "context.jsonl has no caption of '001.jpg'"),
        ("answers_gpt4.jsonl", "answers_gpt4.jsonl does not answer 0"),
    ],
)
def test_files_that_are_cut_off_are_named(judge, tmp_path, name, message):
    root = copy_of("llava_bench", tmp_path)
    path = root / name
    path.write_text(json.dumps({"a": 1}) if name == "rule.json" else path.read_text().split("\n", 1)[1])
    with pytest.raises(UserError, match=message):
        BENCH.score(answers_to("llava_bench"), root, strict=True, reviews=tmp_path / "reviews.jsonl")
