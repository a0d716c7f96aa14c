"""MM-Vet: what the judge reads, grades that are none, and capabilities."""

import json

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.mmvet import TRIES
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

MMVET, ROOT = BENCHMARKS["mmvet"], FIXTURES / "mmvet"


def graded(request):
    question = request["messages"][0]["content"].split("\n")[-1].split(" | ")[0]
    return {"What is x?": "0.5", "Which sport is it?": "1.0 ", "What does it say?": "0.0"}[question]


def test_score(judge, tmp_path):
    judge.reply = graded
    scores = MMVET.score(answers_to("mmvet"), ROOT, reviews=tmp_path / "reviews.jsonl")
    assert scores.metrics == {"total": 50}
    assert scores.categories == {"math": 50, "ocr": 25, "rec": 100}
    assert scores.items == {"0": 0.5, "1": 1, "2": 0}
    assert scores.details == {"judge": "stub", "prompt": "our own wording"}


def test_what_the_judge_reads(judge, tmp_path):
    judge.reply = graded
    root = copy_of("mmvet", tmp_path)
    (root / "prompt.txt").write_text("Grade.\n")
    scores = MMVET.score(answers_to("mmvet"), root, reviews=tmp_path / "reviews.jsonl")
    assert judge.requests[0]["messages"] == [
        {"role": "user", "content": "Grade.\n\nWhat is x? | -1 <AND> -5 | x = -1 | "}
    ]
    assert (judge.requests[0]["temperature"], judge.requests[0]["max_tokens"]) == (0, 3)
    assert scores.details["prompt"].startswith("prompt.txt, sha256 ")


@pytest.mark.parametrize("nonsense", ["good", "1.5", "-1", ""])
def test_a_grade_that_is_none_is_asked_for_again_and_then_zero_but_left_out_for_strict(judge, tmp_path, nonsense):
    judge.reply = lambda request: nonsense if "What is x?" in str(request) else "1.0"
    scores = MMVET.score(answers_to("mmvet"), ROOT, reviews=tmp_path / "reviews.jsonl")
    assert scores.metrics == {"total": 66.7}
    assert [request["temperature"] for request in judge.requests[:TRIES]] == [0, 0.5, 1, 1.5, 2]
    strict = MMVET.score(answers_to("mmvet"), ROOT, strict=True, reviews=tmp_path / "reviews.jsonl")
    assert strict.metrics == {"total": 100}
    assert scores.notes == strict.notes == {"unparsable": 1}


def test_a_missing_answer_stops_it_and_is_wrong_for_strict(judge, tmp_path):
    judge.reply = graded
    answers = without(answers_to("mmvet"), 1)
    with pytest.raises(UserError, match="1 answers to MM-Vet are missing, the first to '1'"):
        MMVET.score(answers, ROOT, reviews=tmp_path / "reviews.jsonl")
    strict = MMVET.score(answers, ROOT, strict=True, reviews=tmp_path / "reviews.jsonl")
    assert strict.metrics == {"total": 16.7}


def test_submission(tmp_path):
    MMVET.submission(answers_to("mmvet"), ROOT, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"v1_0": "x = -1", "v1_1": "tennis", "v1_2": "go"}


def test_another_file_is_refused(tmp_path, judge):
    root = copy_of("mmvet", tmp_path)
    (root / "mm-vet.json").write_text('{"v1_0": {"question": "a"}}')
    with pytest.raises(UserError, match="does not hold MM-Vet's questions"):
        MMVET.score(answers_to("mmvet"), root, reviews=tmp_path / "reviews.jsonl")
