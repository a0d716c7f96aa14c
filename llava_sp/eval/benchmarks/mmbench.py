"""MMBench (arXiv 2307.06281) in English and Chinese: the dev questions, scored here too, and the test questions."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.benchmarks.base import MODEL_VQA, NOT_WRITTEN, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.questions import Question
from llava_sp.eval.tables import LETTERS, is_missing, options_of, read_mmbench, read_tsv
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import atomic_path

PASS = 1_000_000
"""A question and the same with its options turned round have indexes that differ by multiples of this."""

LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6

Row = dict[str, Any]


class MmBench(Benchmark):
    """MMBench: the table that its server takes, and for dev the score by LLaVA's rules.

    Args:
        name: What commands call it.
        title: What tables call it.
        folder: Its folder, as LLaVA's scripts have it.
        table: The table of questions, with their images.
        lang: Language of the prompt, `"en"` or `"cn"`.
        scored: Where it is scored.
    """

    images = "."
    settings = MODEL_VQA
    suffix = ".xlsx"

    def __init__(
        self, name: str, title: str, folder: str, table: str, lang: str, scored: Literal["here", "server"]
    ) -> None:
        self.name = name
        self.title = title
        self.folder = folder
        self.question_file = table
        self.lang = lang
        self.scored = scored
        source = f"download.openmmlab.com/mmclassification/datasets/mmbench/{table}"
        self.files = (DataFile(table, source, "questions and images"),)

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        return read_mmbench(self.path(root, self.question_file), lang=self.lang, single_pred_prompt=True)

    def first(self, questions: list[Question], count: int) -> list[Question]:
        """See `Benchmark.first`; each with its options in every order."""
        chosen = {int(question.id) % PASS for question in questions[:count]}
        return [question for question in questions if int(question.id) % PASS in chosen]

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; a question is right if it is right with its options in every order."""
        if self.scored == "server":
            return super().score(answers, root, strict=strict)
        rows = self._rows(root, ("index", "question", "A", "B", "answer", "category"))
        _, notes = self.align(answers, [row["index"] for row in rows], strict=False)
        given: dict[str, dict[int, Answer]] = defaultdict(dict)
        for answer in answers:
            given[str(answer.question_id)][answer.fields.get("round_id", 0)] = answer
        notes["duplicate"] = len(answers) - sum(map(len, given.values()))
        turns: dict[int, list[bool]] = defaultdict(list)
        for row in rows:
            rounds = list(given[row["index"]].values())
            letters = [choice(answer, options_of(row)) for answer in rounds]
            notes["unparsable"] += letters.count(None)
            turns[int(row["index"]) % PASS].append(bool(rounds) and all(letter == row["answer"] for letter in letters))
        category_of = {int(row["index"]) % PASS: row["category"] for row in rows}
        by_category: dict[str, list[float]] = defaultdict(list)
        for index, rights in turns.items():
            by_category[category_of[index]].append(float(all(rights)))
        return Scores(
            headline="accuracy",
            metrics={
                "accuracy": 100 * mean(all(rights) for rights in turns.values()),
                "first_order": 100 * mean(rights[0] for rights in turns.values()),
            },
            categories={category: 100 * mean(rights) for category, rights in sorted(by_category.items())},
            items={item_key(index): float(all(rights)) for index, rights in turns.items()},
            rule="The rules of LLaVA's eval_mmbench for the letter, without the language model that it asks where they "
            "find none: none is wrong. Right in every order of the options; a missing answer is wrong.",
            notes=dict(+notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        if self.scored == "server":
            return {}
        rows = self._rows(root, ("index", "answer", "category"))
        return {item_key(row["index"]): Expected(row["answer"], row["category"]) for row in rows}

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes the server's table: some of the columns, and `prediction`; of test, every question must have one."""
        rows = self._rows(root, ("index", "question", "A", "B"))
        found, _ = self.align(answers, [row["index"] for row in rows])
        if self.scored == "server":
            self.need_all((row["index"] for row in rows), found, NOT_WRITTEN)
        columns = [column for column in rows[0] if column not in LEFT_OUT]
        columns.insert(PREDICTION_COLUMN, "prediction")
        given = {key: answer.text for key, answer in found.items()}
        _write_xlsx(output, columns, [row | {"prediction": given.get(row["index"], "")} for row in rows])

    def _rows(self, root: Path, columns: tuple[str, ...]) -> list[Row]:
        path = self.path(root, self.question_file)
        rows = read_tsv(path)
        lacking = [column for column in columns if not rows or column not in rows[0]]
        if lacking:
            raise UserError(f"{path} is not {self.title}: it has no column {', '.join(lacking)}.")
        broken = next((n for n, row in enumerate(rows, 1) if not re.fullmatch(r"\d+", row["index"] or "")), None)
        if broken:
            raise UserError(f"{path}, row {broken} has no index; was the file cut off?")
        return rows


def choice(answer: Answer, options: list[str]) -> str | None:
    """Finds the letter of the option that an answer chooses, by the rules of LLaVA's `eval_mmbench`.

    Args:
        answer: The answer; it tells the order that it saw the options in, if that was another one.
        options: The options as the table has them.

    Returns:
        The letter as the table has it; `None` if the rules find none.
    """
    options = answer.fields.get("options", options)
    letters = LETTERS[: len(options)]
    in_table = dict(zip(letters, answer.fields.get("option_char", letters), strict=False))
    bare = answer.text.strip(".").strip().upper()
    if bare in letters:
        return in_table.get(bare)
    lowered = answer.text.lower()
    for letter in letters:
        if f"the answer is {letter.lower()}." in lowered:
            return in_table.get(letter)
    containing = [letter for letter, option in zip(letters, options, strict=False) if lowered in option.lower()]
    return in_table.get(containing[0]) if len(containing) == 1 else None


def _write_xlsx(path: Path, columns: list[str], rows: list[Row]) -> None:
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise UserError("MMBench's server takes an Excel table; to write one: pip install -e '.[eval]'.") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)
    for row in rows:
        cells = []
        for column in columns:
            value = row[column]
            if column == "index":
                cells.append(int(value))
                continue
            text = "" if column != "prediction" and is_missing(value) else ILLEGAL_CHARACTERS_RE.sub("", value)
            cell = WriteOnlyCell(sheet, text or None)
            if text:
                cell.data_type = "s"  # a text that begins with = is none the less no formula
            cells.append(cell)
        sheet.append(cells)
    with atomic_path(path) as temporary:
        book.save(temporary)
