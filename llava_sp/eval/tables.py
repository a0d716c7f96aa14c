"""Questions in the two formats of LLaVA's benchmarks that are not JSON lines: ScienceQA's and MMBench's.

Options, hints and wording follow LLaVA's `model_vqa_science` and `model_vqa_mmbench`, down to what pandas, its reader
of tables, takes for a missing value.
"""

import base64
import binascii
import csv
from pathlib import Path
from typing import Any

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
LETTER_PROMPT_CN = "请直接回答选项字母。"
LETTERS = ("A", "B", "C", "D")

MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "n/a", "null"),
}
"""What pandas reads as a missing value, beside the spellings of `nan` and `none`."""

_LONGEST_FIELD = 2**27  # characters; images in base64 go far beyond the csv module's default


def read_science(path: str | Path, *, single_pred_prompt: bool) -> list[Question]:
    """Reads LLaVA's form of ScienceQA: a JSON list of `{"id", "image" (optional), "conversations"}`.

    Args:
        path: The file.
        single_pred_prompt: Whether to ask for the option's letter alone, as LLaVA-1.5's figures were made.

    Raises:
        UserError: The file is missing, or an item is not a question; the message gives its place.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of questions with id and conversations.")
    suffix = f"\n{LETTER_PROMPT}" if single_pred_prompt else ""
    questions = []
    for number, record in enumerate(records, start=1):
        try:
            identity, image = record["id"], record.get("image")
            text = record["conversations"][0]["value"].replace(IMAGE_TOKEN, "").strip() + suffix
            if not isinstance(identity, str | int) or not isinstance(image, str | None):
                raise TypeError
        except (TypeError, KeyError, IndexError, AttributeError):
            raise UserError(f"{path}, item {number} is no question with id and conversations.") from None
        recorded = text if image is None else f"{IMAGE_TOKEN}\n{text}"
        questions.append(Question(identity, text, image, recorded=recorded))
    return questions


def read_mmbench(
    path: str | Path, *, lang: str = "en", single_pred_prompt: bool, all_rounds: bool = False
) -> list[Question]:
    """Reads an MMBench table: tab-separated `index, question, hint, A, B, C, D, image`, the image in base64.

    Args:
        path: The file.
        lang: `"cn"` asks for the letter in Chinese.
        single_pred_prompt: Whether to ask for the option's letter alone, as LLaVA-1.5's figures were made.
        all_rounds: Whether to ask once with each option in the first place, not once.

    Raises:
        UserError: The file is missing or no such table; the message gives the row.
    """
    suffix = ""
    if single_pred_prompt:
        suffix = f"\n{LETTER_PROMPT_CN if lang == 'cn' else LETTER_PROMPT}"
    questions = []
    for number, row in enumerate(read_tsv(path), start=1):
        try:
            index, image = int(row["index"]), base64.b64decode(row["image"], validate=True)
            text = row["question"] if is_missing(row["hint"]) else f"{row['hint']}\n{row['question']}"
        except KeyError as error:
            raise UserError(f"{path} is no MMBench table: it has no column {error}.") from None
        except (TypeError, ValueError, binascii.Error):
            raise UserError(f"{path}, row {number} is broken; was the file cut off?") from None
        options = options_of(row)
        letters = list(LETTERS[: len(options)])
        for turn in range(len(options) if all_rounds else 1):
            turned = options[turn:] + options[:turn]
            listed = "".join(
                f"\n{letter}. {option}" for letter, option in zip(LETTERS[: len(turned)], turned, strict=True)
            )
            fields = {"round_id": turn, "options": turned, "option_char": letters[turn:] + letters[:turn]}
            questions.append(Question(index, text + listed + suffix, image, recorded=text + listed, fields=fields))
    return questions


def read_tsv(path: str | Path) -> list[dict[str, Any]]:
    """Reads a tab-separated table with a line of names; every value is text.

    Raises:
        UserError: The file is missing or no text.
    """
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise UserError(f"Cannot read the table {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no tab-separated text: {error}.") from error
    finally:
        csv.field_size_limit(before)


def options_of(row: dict[str, Any]) -> list[str]:
    """Returns the options of a row of MMBench; they end at the first one that is missing."""
    options = []
    for letter in LETTERS:
        if is_missing(row.get(letter)):
            break
        options.append(row[letter])
    return options


def is_missing(value: str | None) -> bool:
    """Whether LLaVA takes a table's cell for missing: also if it holds the word None."""
    return value is None or value in MISSING or value.lower() in ("nan", "none")
