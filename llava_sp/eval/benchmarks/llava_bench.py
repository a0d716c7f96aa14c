"""LLaVA-Bench (in the Wild), arXiv 2304.08485: a judge compares GPT-4's answers, which read a caption, with ours."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.benchmarks.base import MODEL_VQA, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.benchmarks.judge import Judge
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, read_json_lines

SOURCE = "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
FAILED = (-1.0, -1.0)
OWN_SYSTEM_MESSAGE = "You compare two answers with care and grade each of them on its own merits."

Row = dict[str, Any]


class LlavaBench(Benchmark):
    """LLaVA-Bench, judged as by LLaVA's `eval_gpt_review_bench` and summed up as by `summarize_gpt_review`."""

    name = "llava_bench"
    title = "LLaVA-Bench (in the Wild)"
    folder = "llava-bench-in-the-wild"
    question_file = "questions.jsonl"
    images = "images"
    settings = MODEL_VQA
    scored = "judge"
    files = (
        DataFile(question_file, SOURCE, "the questions"),
        DataFile("context.jsonl", SOURCE, "captions for the judge"),
        DataFile("answers_gpt4.jsonl", SOURCE, "GPT-4's answers"),
        DataFile("rule.json", "github.com/haotian-liu/LLaVA, llava/eval/table", "what the judge is asked"),
        DataFile("system.txt", "LLaVA's eval_gpt_review_bench", "its system message, to use it and not ours", True),
        DataFile(images, SOURCE, "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is our mean grade in percent of GPT-4's."""
        assert reviews is not None
        judge = Judge(reviews)
        asked = read_json_lines(self.path(root, self.question_file), ("question_id", "image", "text", "category"))
        captions = self._captions(root)
        rules = self._rules(root, {row["category"] for row in asked})
        system = self._system(root)
        found, notes = self.align(answers, [row["question_id"] for row in asked], strict=strict)
        pairs = self._by_id(asked, found, root) if strict else self._by_position(asked, answers, root)
        grades: dict[str, list[tuple[float, float]]] = defaultdict(list)
        items: dict[str, float] = {}
        for row, their_text, our_text in tqdm(pairs, desc=self.name, unit="review"):
            if row["image"] not in captions:
                raise UserError(f"context.jsonl has no caption of {row['image']!r}; is it cut off?")
            rule = rules[row["category"]]
            text = question_to_judge(row["text"], captions[row["image"]], their_text, our_text, rule)
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            about = {"question_id": row["question_id"], "category": f"llava_bench_{row['category']}"}
            grade = grades_in(judge.ask(messages, temperature=0.2, max_tokens=1024, about=about))
            notes["unparsable"] += grade is None
            if grade is None and strict:
                continue
            for category in (row["category"], "all"):
                grades[category].append(grade or FAILED)
            items[item_key(row["question_id"])] = (grade or FAILED)[1]
        relative = {category: _relative(pairs) for category, pairs in sorted(grades.items())}
        order = "by id, without failed reviews" if strict else "by position, a failed review as -1, as there"
        own = system == OWN_SYSTEM_MESSAGE
        return Scores(
            headline="all",
            metrics={"all": relative.pop("all", 0.0)},
            categories=relative,
            items=items,
            rule=f"100 x mean grade / GPT-4's, rounded as in LLaVA's summarize_gpt_review; answers {order}.",
            notes=dict(+notes),
            details={"judge": judge.name, "system_message": "our own wording" if own else "system.txt"},
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        asked = read_json_lines(self.path(root, self.question_file), ("question_id", "category"))
        theirs = {str(row["question_id"]): row["text"] for row in self._theirs(root)}
        return {
            item_key(row["question_id"]): Expected(theirs.get(str(row["question_id"]), ""), row["category"])
            for row in asked
        }

    def _by_position(self, asked: list[Row], answers: Answers, root: Path) -> list[tuple[Row, str, str]]:
        """Puts questions beside GPT-4's answers and ours as they come, up to the end of the shortest file."""
        theirs = [row["text"] for row in self._theirs(root)]
        return list(zip(asked, theirs, (answer.text for answer in answers), strict=False))

    def _by_id(self, asked: list[Row], found: dict[str, Answer], root: Path) -> list[tuple[Row, str, str]]:
        """Puts questions beside GPT-4's answers and ours; ours is empty where there is none."""
        theirs = {str(row["question_id"]): row["text"] for row in self._theirs(root)}
        ours = {key: answer.text for key, answer in found.items()}
        pairs = []
        for row in asked:
            key = str(row["question_id"])
            if key not in theirs:
                raise UserError(f"answers_gpt4.jsonl does not answer {row['question_id']!r}; is it cut off?")
            pairs.append((row, theirs[key], ours.get(key, "")))
        return pairs

    def _theirs(self, root: Path) -> list[Row]:
        return read_json_lines(self.path(root, "answers_gpt4.jsonl"), ("question_id", "text"))

    def _captions(self, root: Path) -> dict[str, str]:
        rows = read_json_lines(self.path(root, "context.jsonl"), ("image", "caption"))
        return {row["image"]: "\n".join(row["caption"]) for row in rows}

    def _rules(self, root: Path, categories: set[str]) -> dict[str, dict[str, str]]:
        path = self.path(root, "rule.json")
        rules = read_json(path)
        try:
            return {name: {key: rules[f"llava_bench_{name}"][key] for key in ("role", "prompt")} for name in categories}
        except (TypeError, KeyError) as error:
            raise UserError(f"{path} has no rule {error}; it must be LLaVA's rule.json.") from None

    def _system(self, root: Path) -> str:
        path = root / "system.txt"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else OWN_SYSTEM_MESSAGE


def question_to_judge(question: str, caption: str, first: str, second: str, rule: dict[str, str]) -> str:
    """Lays out what the judge reads, as LLaVA does."""
    role = rule["role"]
    parts = [f"[Context]\n{caption}", f"[Question]\n{question}"]
    for number, text in enumerate((first, second), start=1):
        parts += [f"[{role} {number}]\n{text}", f"[End of {role} {number}]"]
    return "\n\n".join([*parts, f"[System]\n{rule['prompt']}"]) + "\n\n"


def grades_in(review: str) -> tuple[float, float] | None:
    """Reads the two grades that are the first line of a review, apart by a blank or a comma; `None` if it is not."""
    words = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, words)
    except ValueError:
        return None
    return (first, second) if math.isfinite(first + second) else None


def _relative(pairs: list[tuple[float, float]]) -> float:
    theirs, ours = (round(mean(grades), 3) for grades in zip(*pairs, strict=True))
    return round(ours / theirs * 100, 1) if theirs else 0.0
