"""ScienceQA: which letter an answer chooses, and which questions have an image."""

import json
from dataclasses import replace

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.scienceqa import letter_of
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, without

SCIENCE, ROOT = BENCHMARKS["scienceqa"], FIXTURES / "scienceqa"


def test_score():
    # 1, 2, 3 are right; 4 is not parsed, 5 chooses a letter that is not there, 6 has no answer; 1, 3, 4, 6 have images
    scores = SCIENCE.score(answers_to("scienceqa"), ROOT)
    assert scores.metrics == {"accuracy": 50, "image_accuracy": pytest.approx(200 / 3)}
    assert scores.categories == {"natural science": pytest.approx(200 / 3), "social science": pytest.approx(100 / 3)}
    assert scores.items == {"1": 1, "2": 1, "3": 1, "4": 0, "5": 0, "6": 0}
    assert scores.notes == {"missing": 1, "unparsable": 1}


def test_a_missing_answer_has_no_image_but_for_strict():
    assert SCIENCE.score(answers_to("scienceqa"), ROOT, strict=True).metrics == {"accuracy": 50, "image_accuracy": 50}
    no_image = without(answers_to("scienceqa"), 0, 2, 3)
    assert SCIENCE.score(no_image, ROOT).metrics["image_accuracy"] == 0


def test_without_prompts_only_strict_knows_the_images():
    bare = [replace(answer, prompt="") for answer in answers_to("scienceqa")]
    with pytest.raises(UserError, match=r"have no 'prompt'.*--strict"):
        SCIENCE.score(bare, ROOT)
    assert SCIENCE.score(bare, ROOT, strict=True).metrics == {"accuracy": 50, "image_accuracy": 50}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E. so", "E"),
        ("A.", None),
        ("B.so", None),
        ("a", None),
        (" A", None),
        ("F. no", None),
        ("The answer is B.", "B"),
        ("The answer is Because", "B"),  # any sign may follow
        ("The answer is B", None),
        ("The answer is A. The answer is B.", None),
        ("", None),
    ],
)
def test_letter_of(text, letter):
    assert letter_of(text) == letter


@pytest.mark.parametrize("problems", [[], {"1": {}}, {"1": {"choices": ["a"], "answer": 9}}])
def test_other_files_are_refused(problems, tmp_path):
    root = copy_of("scienceqa", tmp_path)
    (root / "problems.json").write_text(json.dumps(problems))
    (root / "pid_splits.json").write_text('{"test": ["1"]}')
    with pytest.raises(UserError, match="do not hold ScienceQA's problems"):
        SCIENCE.score(answers_to("scienceqa"), root)
