"""MMBench: the letter that an answer chooses, every order of the options, and the table for the server."""

from dataclasses import replace

import openpyxl
import pytest

from llava_sp.eval.answers import Answer
from llava_sp.eval.benchmarks import BENCHMARKS
from llava_sp.eval.benchmarks.mmbench import choice
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import FIXTURES, answers_to, copy_of, with_text, without

MMBENCH, ROOT = BENCHMARKS["mmbench"], FIXTURES / "mmbench"


def test_score():
    # all three are right in the first order; in the second one, count is wrong and object not parsed
    scores = MMBENCH.score(answers_to("mmbench"), ROOT)
    assert scores.metrics == {"accuracy": pytest.approx(100 / 3), "first_order": 100}
    assert scores.categories == {"color": 100, "count": 0, "object": 0}
    assert scores.items == {"241": 1, "252": 0, "263": 0}
    assert scores.notes == {"unparsable": 1}


def test_a_missing_answer_is_wrong():
    scores = MMBENCH.score(without(answers_to("mmbench"), 3), ROOT)
    assert scores.metrics["accuracy"] == 0
    assert scores.notes == {"missing": 1, "unparsable": 1}


def test_a_look_at_the_first_questions_asks_them_in_every_order():
    questions = MMBENCH.questions(ROOT)
    few = MMBENCH.first(questions, 1)
    assert [question.id for question in few] == [241, 1000241]
    asked = {question.id for question in few}
    scores = MMBENCH.score([answer for answer in answers_to("mmbench") if answer.question_id in asked], ROOT)
    assert scores.items["241"] == 1


def test_rounds_with_turned_options_must_all_be_right():
    answers = answers_to("mmbench")
    turned = {"round_id": 1, "options": ["blue", "green", "grey", "red"], "option_char": ["B", "C", "D", "A"]}
    right = replace(answers[0], text="D", fields=answers[0].fields | turned)
    assert MMBENCH.score([*answers, right], ROOT).items["241"] == 1
    wrong = replace(right, text="A")
    assert MMBENCH.score([*answers, wrong], ROOT).items["241"] == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        (" b. ", None),  # the full stop is not at the end
        ("b.", "B"),
        ("So the answer is C.", "C"),
        ("green", "C"),
        ("gre", None),  # green and grey
        ("D", "A"),  # there is no option D, but a d in red
        ("a blue one", None),
        ("", None),
    ],
)
def test_choice(text, letter):
    assert choice(Answer(1, "", text, {}), ["red", "grey", "green"]) == letter


def test_the_table_for_the_server(tmp_path):
    MMBENCH.submission(without(with_text(answers_to("mmbench"), 0, "=A\x00"), 5), ROOT, tmp_path / "out.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    rows = list(sheet.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (241, "Which colour is it?", "red", "blue", "green", "grey", "=A", "A", "dev")
    assert rows[2] == (252, "How many are there?", "one", "two", None, None, "B.", "B", "dev")
    assert rows[6][6] is None  # no answer
    assert len(rows) == 7
    assert {cell.data_type for row in sheet.iter_rows() for cell in row} == {"n", "s"}  # no formula


def test_an_answers_file_that_tells_too_few_options_is_not_parsed():
    assert choice(Answer(1, "", "B", {"options": ["red", "blue"], "option_char": ["A"]}), ["red", "blue"]) is None


def test_test_questions_have_no_answer_and_each_must_have_a_prediction(tmp_path):
    test, root = BENCHMARKS["mmbench_test"], FIXTURES / "mmbench_test"
    test.submission(answers_to("mmbench_test"), root, tmp_path / "out.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    assert [row[6] for row in sheet.iter_rows(values_only=True)] == ["prediction", "A", "B"]
    with pytest.raises(UserError, match="1 answers to MMBench test are missing, the first to '252'"):
        test.submission(without(answers_to("mmbench_test"), 1), root, tmp_path / "none.xlsx")
    assert not (tmp_path / "none.xlsx").exists()


def test_other_tables_are_refused(tmp_path):
    root = copy_of("mmbench", tmp_path)
    path = root / "mmbench_dev_20230712.tsv"
    whole = path.read_text()
    path.write_text(whole.replace("\tanswer\t", "\treply\t"))
    with pytest.raises(UserError, match="is not MMBench dev: it has no column answer"):
        MMBENCH.score(answers_to("mmbench"), root)
    path.write_text(whole.replace("1000252\t", "\t"))
    with pytest.raises(UserError, match="row 5 has no index"):
        MMBENCH.score(answers_to("mmbench"), root)
    path.write_text("")
    with pytest.raises(UserError, match="is not MMBench dev"):
        MMBENCH.submission(answers_to("mmbench"), root, tmp_path / "x.xlsx")
