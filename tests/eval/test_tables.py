"""ScienceQA's and MMBench's questions: the text that LLaVA sends, the prompt that it records, and broken files."""

import base64
import json

import pytest

from llava_sp.eval.tables import LETTER_PROMPT, LETTER_PROMPT_CN, read_mmbench, read_science
from llava_sp.utils.errors import UserError

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "image"]
IMAGE = base64.b64encode(b"the bytes of an image").decode()


@pytest.fixture
def science(tmp_path):
    """Writes records to a file; returns its path."""

    def write(records):
        path = tmp_path / "science.json"
        path.write_text(json.dumps(records))
        return path

    return write


@pytest.fixture
def table(tmp_path):
    """Writes rows to a table; returns its path."""

    def write(*rows):
        path = tmp_path / "table.tsv"
        path.write_text("".join("\t".join(cells) + "\n" for cells in (COLUMNS, *rows)), encoding="utf-8")
        return path

    return write


def turns(text):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "A"}]


def test_science_is_asked_with_and_without_images(science):
    path = science(
        [
            {"id": "1", "image": "1/image.png", "conversations": turns("<image>\nWhich one?\nA. cat\nB. dog")},
            {"id": "2", "conversations": turns("Which two? ")},
        ]
    )
    pictured, text_only = read_science(path, single_pred_prompt=True)
    assert pictured.text == f"Which one?\nA. cat\nB. dog\n{LETTER_PROMPT}"
    assert pictured.prompt == f"<image>\n{pictured.text}"
    assert (text_only.image, text_only.prompt) == (None, f"Which two?\n{LETTER_PROMPT}")
    assert read_science(path, single_pred_prompt=False)[1].text == "Which two?"


@pytest.mark.parametrize("record", [{"conversations": []}, {"id": "1"}, "text", {"id": "1", "conversations": [{}]}])
def test_a_record_of_science_that_is_none_is_told_by_its_place(record, science):
    with pytest.raises(UserError, match="item 2 is no question"):
        read_science(science([{"id": "1", "conversations": turns("?")}, record]), single_pred_prompt=True)


def test_a_file_of_science_that_is_no_list_is_refused(science):
    with pytest.raises(UserError, match="must hold a list"):
        read_science(science({}), single_pred_prompt=True)


def test_options_end_at_the_first_missing_one_and_the_image_lies_in_the_table(table):
    path = table(
        ["7", "Which?", "Look.", "cat", "dog", "nan", "cow", IMAGE], ["8", "Is it?", "", "yes", "no", "", "", IMAGE]
    )
    first, second = read_mmbench(path, single_pred_prompt=True)
    assert (first.id, first.image) == (7, b"the bytes of an image")
    assert first.prompt == "Look.\nWhich?\nA. cat\nB. dog"
    assert first.text == f"{first.prompt}\n{LETTER_PROMPT}"
    assert first.fields == {"round_id": 0, "options": ["cat", "dog"], "option_char": ["A", "B"]}
    assert second.prompt == "Is it?\nA. yes\nB. no"
    assert read_mmbench(path, lang="cn", single_pred_prompt=True)[0].text.endswith(f"\n{LETTER_PROMPT_CN}")
    assert read_mmbench(path, single_pred_prompt=False)[0].text == first.prompt


def test_all_rounds_turn_the_options_round(table):
    rounds = read_mmbench(
        table(["7", "Which?", "", "cat", "dog", "cow", "", IMAGE]), single_pred_prompt=True, all_rounds=True
    )
    assert [question.prompt for question in rounds] == [
        "Which?\nA. cat\nB. dog\nC. cow",
        "Which?\nA. dog\nB. cow\nC. cat",
        "Which?\nA. cow\nB. cat\nC. dog",
    ]
    assert [question.fields["option_char"] for question in rounds] == [
        ["A", "B", "C"],
        ["B", "C", "A"],
        ["C", "A", "B"],
    ]
    assert [question.fields["round_id"] for question in rounds] == [0, 1, 2]
    assert len({question.key for question in rounds}) == 3


@pytest.mark.parametrize(
    "row", [["seven", "?", "", "a", "b", "", "", IMAGE], ["7", "?", "", "a", "b", "", "", "%%%"], ["7", "?", "", "a"]]
)
def test_a_broken_row_is_told(row, table):
    with pytest.raises(UserError, match=r"row 2 is broken; was the file cut off\?"):
        read_mmbench(table(["7", "Which?", "", "cat", "dog", "", "", IMAGE], row), single_pred_prompt=True)


def test_what_is_no_such_table_is_told(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1}\n{"question_id": 2}\n')
    with pytest.raises(UserError, match="is no MMBench table: it has no column 'index'"):
        read_mmbench(path, single_pred_prompt=True)
    with pytest.raises(UserError, match=r"none\.tsv"):
        read_mmbench(tmp_path / "none.tsv", single_pred_prompt=True)
