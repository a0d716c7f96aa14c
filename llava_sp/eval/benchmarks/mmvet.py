"""MM-Vet (arXiv 2308.02490): open questions that need several capabilities at once, graded by a judge."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import (
    EVAL_ZIP,
    MODEL_VQA,
    STOPS,
    Benchmark,
    DataFile,
    Expected,
    Scores,
    item_key,
    mean,
)
from llava_sp.eval.benchmarks.judge import Judge
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json

TRUTHS = "mm-vet.json"
TRIES = 5
OWN_PROMPT = """Grade how well a prediction agrees with the true answer: 0.0 (not at all), 0.1, 0.2, ... 1.0 (fully).
Where the true answer joins parts by <AND>, the grade is the share of parts that the prediction has; where it joins them
by <OR>, any one of them is enough. Complete the last cell of the table with the grade alone.

Question | True answer | Prediction | Grade
--- | --- | --- | ---
Which fruits are on the plate? | apple <AND> pear | There is an apple. | 0.5
Which fruits are on the plate? | apple <AND> pear | An apple and a pear. | 1.0
What is she holding? | a cup <OR> a mug | a mug of tea | 1.0
What does the sign say? | stop | It says go. | 0.0
"""
NUMBER_ONLY = "\nThe grade, as a number: "


class MmVet(Benchmark):
    """MM-Vet, graded as by its own evaluator, once a question."""

    name = "mmvet"
    title = "MM-Vet"
    folder = "mm-vet"
    question_file = "llava-mm-vet.jsonl"
    images = "images"
    settings = MODEL_VQA
    scored = "judge"
    suffix = ".json"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(TRUTHS, "github.com/yuweihao/MM-Vet/releases, mm-vet.zip", "answers and capabilities"),
        DataFile("prompt.txt", "MM-Vet's mm-vet_evaluator notebook", "its prompt, to use it and not ours", True),
        DataFile(images, "github.com/yuweihao/MM-Vet/releases, mm-vet.zip", "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the mean grade in percent."""
        assert reviews is not None
        judge = Judge(reviews)
        truths = self._truths(root)
        prompt = root / "prompt.txt"
        instruction = prompt.read_text(encoding="utf-8") if prompt.is_file() else OWN_PROMPT
        found, notes = self.align(answers, (key.removeprefix("v1_") for key in truths), strict=strict)
        if not strict:
            self.need_all((key.removeprefix("v1_") for key in truths), found, STOPS)
        grades: dict[str, list[float]] = defaultdict(list)
        items: dict[str, float] = {}
        for key, truth in tqdm(truths.items(), desc=self.name, unit="review"):
            number = key.removeprefix("v1_")
            grade: float | None = 0.0
            if number in found:
                expected = truth["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
                row = " | ".join([truth["question"], expected, found[number].text, ""])
                grade = _grade(judge, f"{instruction}\n{row}", {"question_id": key})
            notes["unparsable"] += grade is None
            if grade is None and strict:
                continue
            items[item_key(number)] = grade or 0.0
            for capability in {*truth["capability"], "total"}:
                grades[capability].append(grade or 0.0)
        scores = {name: round(100 * mean(values), 1) for name, values in sorted(grades.items())}
        failed = "left out" if strict else "graded 0, as there"
        told = f"prompt.txt, sha256 {hashlib.sha256(instruction.encode()).hexdigest()}"
        return Scores(
            headline="total",
            metrics={"total": scores.pop("total", 0.0)},
            categories=scores,
            items=items,
            rule=f"A judge's grade from 0 to 1, x 100; an answer that it does not grade in {TRIES} tries is {failed}.",
            notes=dict(+notes),
            details={"judge": judge.name, "prompt": told if instruction != OWN_PROMPT else "our own wording"},
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        truths = self._truths(root)
        return {item_key(key.removeprefix("v1_")): Expected(truth["answer"]) for key, truth in truths.items()}

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes `{"v1_ID": text}`, which MM-Vet's own evaluator takes."""
        truths = self._truths(root)
        found, _ = self.align(answers, (key.removeprefix("v1_") for key in truths))
        given = {key: found.get(key.removeprefix("v1_")) for key in truths}
        write_json(output, {key: answer.text for key, answer in given.items() if answer})

    def _truths(self, root: Path) -> dict[str, dict[str, Any]]:
        path = self.path(root, TRUTHS)
        truths = read_json(path)
        keys = {"question", "answer", "capability"}
        if not isinstance(truths, dict) or not all(isinstance(t, dict) and keys <= t.keys() for t in truths.values()):
            raise UserError(f"{path} does not hold MM-Vet's questions with answers and capabilities.")
        return truths


def _grade(judge: Judge, question: str, about: dict[str, Any]) -> float | None:
    """Asks for a grade; if the reply is none, asks for a number alone, each time with more chance in the reply."""
    for attempt in range(TRIES):
        text = question + (NUMBER_ONLY if attempt else "")
        messages = [{"role": "user", "content": text}]
        reply = judge.ask(messages, temperature=attempt / 2, max_tokens=3, about=about)
        try:
            grade = float(reply.split(" ")[0].strip())
        except ValueError:
            continue
        if 0 <= grade <= 1:
            return grade
    return None
