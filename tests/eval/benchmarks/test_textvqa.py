"""TextVQA: questions found by their prompts."""

from dataclasses import replace

import pytest

from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.textvqa import question_of
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, with_text, without

TEXTVQA, ROOT = BENCHMARKS["textvqa"], FIXTURES / "textvqa"


def test_score():
    # nokia 9 of 10: 1; 10:30 3 of 10: 0.9; five is 5: 1
    scores = TEXTVQA.score(answers_to("textvqa"), ROOT)
    assert scores.metrics == {"accuracy": pytest.approx(100 * 2.9 / 3)}
    assert sorted(scores.items.values()) == [pytest.approx(0.9), 1, 1]
    assert len({key.split(" ")[0] for key in scores.items}) == 2  # two questions are about one image


def test_missing_and_double_answers_shift_the_mean_but_not_for_strict():
    answers = without(answers_to("textvqa"), 0)
    odd = [*answers, answers[0]]
    assert TEXTVQA.score(odd, ROOT).metrics["accuracy"] == pytest.approx(100 * (0.9 + 1 + 0.9) / 3)
    strict = TEXTVQA.score(odd, ROOT, strict=True)
    assert strict.metrics["accuracy"] == pytest.approx(100 * (0.9 + 1) / 3)
    assert strict.notes == {"missing": 1, "duplicate": 1}
    with pytest.raises(UserError, match="has two answers, '10:30' and 'noon'"):
        TEXTVQA.score([*answers, *with_text(answers[:1], 0, "noon")], ROOT, strict=True)


def test_of_full_stops_32_go():
    answers = with_text(answers_to("textvqa"), 2, "5" + 33 * ".")
    assert TEXTVQA.score(answers, ROOT).metrics["accuracy"] == pytest.approx(100 * 1.9 / 3)
    assert TEXTVQA.score(answers, ROOT, strict=True).metrics["accuracy"] == pytest.approx(100 * 2.9 / 3)


@pytest.mark.parametrize(
    "prompt",
    [
        "What Is it?\nReference OCR token: A\nAnswer.",
        "Reference OCR token: A\nWhat Is it?\nAnswer.",
        "What Is it?\nAnswer.",
    ],
)
def test_the_question_is_found_in_the_prompt(prompt):
    assert question_of(prompt) == "what is it?"


@pytest.mark.parametrize("prompt", ["", "What is it?", "What is it?\nno tokens\nAnswer."])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(UserError, match="is not one of TextVQA's"):
        question_of(prompt)


def test_unknown_questions_and_other_files_are_refused(tmp_path):
    answers = answers_to("textvqa")
    with pytest.raises(UserError, match="no question 'what is the brand\\?' about the image 'img9'"):
        TEXTVQA.score([replace(answers[0], question_id="img9")], ROOT)
    root = copy_of("textvqa", tmp_path)
    (root / "TextVQA_0.5.1_val.json").write_text('{"data": [{"image_id": "a", "question": "b", "answers": ["c"]}]}')
    with pytest.raises(UserError, match="without ten people's answers"):
        TEXTVQA.score(answers, root)
    (root / "TextVQA_0.5.1_val.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold TextVQA's annotations"):
        TEXTVQA.score(answers, root)
