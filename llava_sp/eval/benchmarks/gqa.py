"""GQA (arXiv 1902.09506), the balanced test-dev questions."""

import json
from collections import defaultdict
from pathlib import Path

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, STOPS, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_text

TRUTHS = "data/testdev_balanced_questions.json"
SOURCE = "cs.stanford.edu/people/dorarad/gqa/download.html"


class Gqa(Benchmark):
    """GQA, scored as by its own `eval.py` after LLaVA's `convert_gqa_for_eval`."""

    name = "gqa"
    title = "GQA"
    folder = "gqa"
    question_file = "llava_gqa_testdev_balanced.jsonl"
    images = "data/images"
    suffix = ".json"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(TRUTHS, SOURCE, "the questions with their answers"),
        DataFile(images, SOURCE, "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the categories are the structural types."""
        truths = self._truths(root)
        found, notes = self.align(answers, truths, strict=strict)
        if not strict:
            self.need_all(truths, found, STOPS)
        items: dict[str, float] = {}
        groups: dict[str, list[float]] = defaultdict(list)
        for key, (truth, kind) in truths.items():
            items[item_key(key)] = score = float(key in found and prediction(found[key].text) == truth)
            groups[kind].append(score)
            groups["open" if kind == "query" else "binary"].append(score)
        shares = {name: 100 * mean(scores) for name, scores in sorted(groups.items())}
        return Scores(
            headline="accuracy",
            metrics={"accuracy": 100 * mean(items.values())}
            | {name: shares.pop(name) for name in ("binary", "open") if name in shares},
            categories=shares,
            items=items,
            rule="Equal to the answer in lower case, without final full stops.",
            notes=dict(notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        return {item_key(key): Expected(truth, kind) for key, (truth, kind) in self._truths(root).items()}

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes `[{"questionId", "prediction"}]`, which GQA's own `eval.py` takes."""
        rows = [{"questionId": answer.question_id, "prediction": prediction(answer.text)} for answer in answers]
        write_text(output, json.dumps(rows))

    def _truths(self, root: Path) -> dict[str, tuple[str, str]]:
        """Returns the answer and the structural type of each question."""
        path = self.path(root, TRUTHS)
        try:
            return {
                key: (row["answer"], row["types"]["structural"])
                for key, row in read_json(path).items()
                if row["isBalanced"]
            }
        except (AttributeError, TypeError, KeyError):
            raise UserError(f"{path} does not hold GQA's questions with answers.") from None


def prediction(text: str) -> str:
    """Prepares an answer as LLaVA's `convert_gqa_for_eval` does."""
    return text.rstrip(".").lower()
