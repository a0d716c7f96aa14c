"""The tiny world's benchmark, and the playground's own score."""

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.playground.scorer import score_answers
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, without

TINY, ROOT = BENCHMARKS["tiny"], FIXTURES / "tiny"


def test_score_is_the_playgrounds():
    scores = TINY.score(answers_to("tiny"), ROOT)
    assert scores.metrics == {"mean": 50}
    assert scores.categories == {"position": 50, "existence": 50}
    assert scores.items == {"000000_position": 1, "000000_existence": 0, "000001_position": 0, "000001_existence": 1}
    playground = score_answers(ROOT / "answers.jsonl", ROOT / "annotations.jsonl")
    theirs = {score.task: 100 * score.accuracy for score in playground}
    assert theirs == scores.metrics | scores.categories


def test_a_missing_answer_is_refused_or_wrong():
    answers = without(answers_to("tiny"), 0)
    with pytest.raises(UserError, match="1 answers to tiny world are missing, the first to '000000_position'"):
        TINY.score(answers, ROOT)
    assert TINY.score(answers, ROOT, strict=True).metrics == {"mean": 25}
