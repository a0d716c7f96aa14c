"""What is right, for readers of answers: it belongs to the scores, and says what the files say."""

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.base import Expected
from tests.eval.benchmarks.helpers import FIXTURES, answers_to

HERE = [name for name, benchmark in BENCHMARKS.items() if benchmark.scored == "here"]


@pytest.mark.parametrize("name", HERE)
def test_every_score_has_its_truth_and_a_category_of_the_scores(name):
    scores = BENCHMARKS[name].score(answers_to(name), FIXTURES / name)
    expected = BENCHMARKS[name].expected(FIXTURES / name)
    assert all(expected[key].answer for key in scores.items)
    assert {expected[key].category for key in scores.items} <= {*scores.categories, ""}


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("pope", "0", Expected("yes", "adversarial")),
        ("tiny", "000001_position", Expected("centre", "position")),
    ],
)
def test_what_the_files_say(name, key, expected):
    assert BENCHMARKS[name].expected(FIXTURES / name)[key] == expected


def test_a_servers_benchmark_tells_nothing():
    assert BENCHMARKS["mmbench_test"].expected(FIXTURES / "mmbench_test") == {}
    assert BENCHMARKS["vqav2"].expected(FIXTURES / "vqav2") == {}
