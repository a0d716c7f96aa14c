"""RefCOCO: boxes read from answers, and how far they overlap."""

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.refcoco import box_in, overlap, pad, stretch
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

REFCOCO, ROOT = BENCHMARKS["refcoco"], FIXTURES / "refcoco"


def test_score():
    # val: the padded box, and one that overlaps by 0.51; testA: the box of the stretched image; testB: no box
    scores = REFCOCO.score(answers_to("refcoco"), ROOT)
    assert scores.metrics == {"val": 100, "testA": 0, "testB": 0, "all": 50, "all_stretched": 50}
    assert scores.items == {"val/1": 1, "val/2": 1, "testA/1": 0, "testB/1": 0}
    assert scores.notes == {"unparsable": 1}


def test_a_missing_answer_is_wrong():
    scores = REFCOCO.score(without(answers_to("refcoco"), 0), ROOT)
    assert scores.metrics["val"] == 50
    assert scores.notes == {"missing": 1, "unparsable": 1}


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", [0.1, 0.2, 0.3, 0.4]),
        ("It is at [0,1,.5,1]", None),
        ("It is at [ 0 ,1, 0.5,1 ].", [0, 1, 0.5, 1]),
        ("[0.1, 0.2, 0.3]", None),
        ("[a, b, c, d]", None),
        ("", None),
    ],
)
def test_box_in(text, box):
    assert box_in(text) == box


def test_overlap():
    assert overlap([0, 0, 2, 2], [0, 0, 2, 2]) == 1
    assert overlap([0, 0, 2, 2], [1, 0, 3, 2]) == pytest.approx(1 / 3)
    assert overlap([0, 0, 1, 1], [2, 2, 3, 3]) == 0
    assert overlap([1, 1, 0, 0], [0, 0, 1, 1]) == 0  # corners the wrong way round


def test_frames():
    assert pad([0, 0, 200, 100], 200, 100) == [0, 0.25, 1, 0.75]
    assert pad([10, 0, 20, 100], 50, 100) == [0.35, 0, 0.45, 1]
    assert stretch([50, 50, 200, 100], 200, 100) == [0.25, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("whole", "broken"),
    [('"width": 200', '"width": 0'), ('"width": 200', '"width": "wide"'), ("[0, 0, 200, 100]", "[0, 0, 200]")],
)
def test_a_broken_line_is_named(tmp_path, whole, broken):
    root = copy_of("refcoco", tmp_path)
    path = root / "refcoco_testA.jsonl"
    path.write_text(path.read_text().replace(whole, broken))
    with pytest.raises(UserError, match=r"refcoco_testA\.jsonl, line 1: bbox must be four numbers"):
        REFCOCO.questions(root)
