"""What all benchmarks share: finding files, and answers by id."""

from dataclasses import replace

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS, get_benchmark
from llava_sp.eval.benchmarks.base import DataFile
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, with_text, without


def test_a_benchmark_is_found_by_name_or_the_names_are_told():
    assert get_benchmark("pope").title == "POPE"
    with pytest.raises(UserError, match=r"no benchmark 'popo'.*vqav2, .*tiny"):
        get_benchmark("popo")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_files_that_are_missing_are_told_with_their_source(name, tmp_path):
    benchmark = BENCHMARKS[name]
    needed = [file for file in benchmark.files if not file.optional]
    assert benchmark.missing(tmp_path) == needed
    assert all(file.source and file.what for file in benchmark.files)
    images = {file.name for file in benchmark.missing(FIXTURES / name)}
    assert images <= {benchmark.images, "SEED-Bench-image"}  # all but the pictures are among the fixtures
    with pytest.raises(UserError, match=r"needs .*, which is not there; it comes from "):
        benchmark.questions(tmp_path)


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.scored == "here"])
def test_answers_to_something_else_are_refused(name):
    strangers = [replace(answer, question_id="nobody/asked") for answer in answers_to("pope")]
    for strict in (False, True):
        with pytest.raises(UserError, match=r"The answers are not to|has no question|is not one of"):
            BENCHMARKS[name].score(strangers, FIXTURES / name, strict=strict)
        with pytest.raises(UserError, match="the file is empty"):
            BENCHMARKS[name].score([], FIXTURES / name, strict=strict)


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.scored == "here"])
def test_every_score_has_its_headline_a_rule_and_an_item_a_question(name):
    benchmark = BENCHMARKS[name]
    scores = benchmark.score(answers_to(name), FIXTURES / name, strict=True)
    assert scores.headline in scores.metrics
    assert scores.rule
    assert scores.items and all(0 <= value <= 1 for value in scores.items.values())


def test_files_may_lie_flat(tmp_path):
    label = DataFile("coco/coco_pope_random.json", "", "")
    (tmp_path / "coco_pope_random.json").touch()
    assert label not in BENCHMARKS["pope"].missing(tmp_path)
    assert BENCHMARKS["pope"].path(tmp_path, label.name) == tmp_path / "coco_pope_random.json"


def test_what_is_odd_is_counted_and_the_last_of_several_answers_counts():
    benchmark, answers = BENCHMARKS["gqa"], answers_to("gqa")
    odd = [*without(answers, 0), replace(answers[1], text="plate"), replace(answers[0], question_id=7)]
    found, notes = benchmark.align(odd, ["201", "202", "203"])
    assert notes == {"missing": 1, "duplicate": 1, "unknown": 1}
    assert found["202"].text == "plate"


def test_strict_refuses_two_different_answers_but_not_the_same_twice():
    benchmark, answers = BENCHMARKS["gqa"], answers_to("gqa")
    ids = ["201", "202", "203"]
    assert benchmark.align([*answers, answers[0]], ids, strict=True)[1] == {"duplicate": 1}
    with pytest.raises(UserError, match=r"'201' has two answers, 'Yes\.' and 'No'"):
        benchmark.align([*answers, *with_text(answers, 0, "No")], ids, strict=True)


def test_a_server_scores_its_benchmark_and_nothing_is_handed_in_where_none_does(tmp_path):
    for name in ("vqav2", "vizwiz", "mmbench_test"):
        with pytest.raises(UserError, match="scored by its server"):
            BENCHMARKS[name].score(answers_to(name), FIXTURES / name)
    with pytest.raises(UserError, match="Nothing is handed in for POPE"):
        BENCHMARKS["pope"].submission(answers_to("pope"), FIXTURES / "pope", tmp_path / "x.json")
