"""The check before training finds each kind of trouble and names the samples."""

from typing import Any

import numpy as np
import pytest
import torch

from llava_sp.data.check import Report, check_records
from llava_sp.data.problems import Problem
from llava_sp.utils.errors import UserError
from tests.data.test_dataset import record

FINE = record("fine", "<image>\nWhat?", image="red.png")


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        (Problem.IMAGE_OUTSIDE, record("x7", "<image>\nWhat?", image="../../secret.png")),
        (Problem.IMAGE_MISSING, record("x7", "<image>\nWhat?", image="blue.png")),
        (Problem.IMAGE_CORRUPT, record("x7", "<image>\nWhat?", image="page.jpg")),
        (Problem.IMAGE_COUNT, record("x7", "<image>\nWhat?")),
        (Problem.IMAGE_COUNT, record("x7", "What?", image="red.png")),
        (Problem.ROLES, {"id": "x7", "conversations": [{"from": "human", "value": "A?"}] * 2}),
        (Problem.ROLES, {"id": "x7", "conversations": []}),
        (Problem.NO_ROOM, record("x7", "<image>\nWhat?", image="red.png")),
        (Problem.NOTHING_LEARNED, record("x7", "word " * 100)),
        (Problem.EMPTY_ANSWER, record("x7", "What?", " ")),
    ],
    ids=lambda value: value.name if isinstance(value, Problem) else "",
)
def test_each_problem_is_found(problem: Problem, wrong: dict[str, Any], dataset: Any) -> None:
    limit = {Problem.NO_ROOM: 85, Problem.NOTHING_LEARNED: 150}.get(problem, 2048)
    text = record("text", "What?")
    data = dataset(text, wrong, max_length=limit)
    (data.image_folder / "page.jpg").write_text("<html>404</html>")
    report = check_records(data, None)
    assert report.first[problem] == ["x7"]
    assert report.ok is not problem.unreadable
    assert report.unreadable == problem.unreadable
    assert f"1 x {problem}" in str(report)
    assert "'x7'" in str(report)


def test_what_the_check_passes_can_be_read(dataset: Any) -> None:
    data = dataset(FINE, record("text", "What?"))
    report = check_records(data)
    assert report.ok
    assert str(report) == "Checked 2 of 2 samples: no problem."
    assert [data[position]["sample_id"] for position in range(2)] == ["fine", "text"]


def test_an_oversized_image(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_sp.data.images.load_image.__defaults__", (63,))
    assert check_records(dataset(FINE)).counts == {Problem.IMAGE_TOO_LARGE: 1}


def test_an_image_of_too_many_tiles_is_reported_with_its_size_and_the_mend(dataset: Any) -> None:
    report = check_records(dataset(FINE, num_image_tokens=lambda height, width: 2370))
    assert not report.ok
    said = (
        "2370 visual tokens of an image of 8 x 8 pixels, after 81 of text, leave no room for what follows within 2048"
    )
    assert f"'fine': Its {said} tokens; raise --model_max_length, or choose fewer tiles" in str(report)


def test_an_unreadable_image_is_counted_once_where_its_size_matters(dataset: Any) -> None:
    data = dataset(record("x7", "<image>\nWhat?", image="blue.png"), num_image_tokens=lambda height, width: 3)
    assert check_records(data).counts == {Problem.IMAGE_MISSING: 1}


def test_data_that_teaches_nothing_at_all_is_not_ok(dataset: Any) -> None:
    assert not check_records(dataset(record("a", "What?", ""))).ok


@pytest.mark.parametrize(("share", "ok"), [(0.0, False), (0.19, False), (0.2, True)])
def test_a_share_of_unreadable_samples_is_let_pass(share: float, ok: bool, dataset: Any) -> None:
    wrong = record("twice wrong", "What?", image="blue.png")
    data = dataset(*[FINE] * 8, wrong, record("no image", "<image>\nWhat?"))
    report = check_records(data, max_bad_share=share)
    assert report.counts == {Problem.IMAGE_COUNT: 2, Problem.IMAGE_MISSING: 1}
    assert report.unreadable == 2
    assert report.ok is ok
    assert ("stops training)" in str(report)) is not (share > 0)
    assert ("take the place of those 2 that cannot be read, a share of 0.2;" in str(report)) is (share > 0)


def test_data_that_cannot_be_read_teaches_nothing_either(dataset: Any) -> None:
    assert not check_records(dataset(record("a", "What?", ""), record("b", "<image>")), max_bad_share=1.0).ok


def test_the_first_names_are_given_and_the_rest_counted(dataset: Any) -> None:
    report = check_records(dataset(*[record(f"n{n}", "<image>\nWhat?") for n in range(9)]))
    assert report.first[Problem.IMAGE_COUNT] == ["n0", "n1", "n2", "n3", "n4"]
    assert "9 x" in str(report)
    assert "'n4', ..." in str(report)


def test_a_sample_is_drawn_by_its_seed_and_leaves_the_random_state(dataset: Any) -> None:
    data = dataset(*[record(f"n{n}", "<image>\nWhat?") for n in range(40)])
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    reports = [check_records(data, 10, seed=seed) for seed in (1, 1, 2)]
    assert [report.checked for report in reports] == [10, 10, 10]
    assert str(reports[0]) == str(reports[1]) != str(reports[2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_worker_processes_find_the_same(dataset: Any) -> None:
    data = dataset(FINE, *[record(f"n{n}", "<image>\nWhat?") for n in range(5)])
    assert str(check_records(data, workers=2)) == str(check_records(data, workers=0))


def test_settings_are_not_taken_for_a_samples_fault(dataset: Any) -> None:
    with pytest.raises(UserError, match="--image_folder"):
        check_records(dataset(FINE, image_folder=""))


def test_a_sample_of_the_data_may_hold_a_few_more_by_chance() -> None:
    for checked, total, unreadable, ok in ((1000, 665_000, 4, True), (1000, 665_000, 5, False), (1000, 1000, 2, False)):
        report = Report(total, max_bad_share=0.001, checked=checked, unreadable=unreadable)
        assert report.ok is ok
