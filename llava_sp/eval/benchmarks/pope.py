"""POPE (arXiv 2305.10355): is an object in the image? Three ways of choosing the objects that are not."""

from pathlib import Path
from typing import Any

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, SHORT_PROMPT, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_lines

CATEGORIES = ("adversarial", "popular", "random")
FIGURES = ("f1", "accuracy", "precision", "recall", "yes_ratio")

Row = dict[str, Any]


class Pope(Benchmark):
    """POPE on COCO, scored as by LLaVA's `eval_pope`."""

    name = "pope"
    title = "POPE"
    folder = "pope"
    question_file = "llava_pope_test.jsonl"
    images = "val2014"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        *(
            DataFile(f"coco/coco_pope_{category}.json", "github.com/AoiDragon/POPE, output/coco at e3e3926", "labels")
            for category in CATEGORIES
        ),
        DataFile(images, "images.cocodataset.org/zips/val2014.zip", "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the mean F1 of the three categories."""
        asked = read_json_lines(self.path(root, self.question_file), ("question_id", "image", "text", "category"))
        found, notes = self.align(answers, [row["question_id"] for row in asked], strict=strict)
        category_of = {str(row["question_id"]): row["category"] for row in asked}
        metrics: dict[str, float] = {}
        items: dict[str, float] = {}
        for category in CATEGORIES:
            rows = read_json_lines(self.path(root, f"coco/coco_pope_{category}.json"), ("image", "text", "label"))
            if strict:
                ids, said, labels = _by_id(found, [row for row in asked if row["category"] == category], rows)
            else:
                given = [answer for answer in answers if category_of.get(str(answer.question_id)) == category]
                ids = [str(answer.question_id) for answer in given]
                said, labels = [says_yes(answer.text) for answer in given], [_label(row) for row in rows]
            metrics |= {f"{category}_{name}": value for name, value in _figures(said, labels).items()}
            # By position, there are fewer answers than labels where one is missing.
            items |= {item_key(key): float(yes == label) for key, yes, label in zip(ids, said, labels, strict=False)}
        notes["unparsable"] = sum(says_yes(answer.text) and "yes" not in answer.text.lower() for answer in answers)
        means = {name: mean(metrics[f"{category}_{name}"] for category in CATEGORIES) for name in FIGURES}
        order = "by id; a missing answer is a wrong one" if strict else "by position, as in LLaVA's eval_pope"
        return Scores(
            headline="f1",
            metrics=means | metrics,
            categories={category: metrics[f"{category}_f1"] for category in CATEGORIES},
            items=items,
            rule=f"No, no or not in the first sentence is no, all else is yes; answers meet labels {order}.",
            notes=dict(+notes),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        asked = read_json_lines(self.path(root, self.question_file), ("question_id", "image", "text", "category"))
        labels = {}
        for category in CATEGORIES:
            for row in read_json_lines(self.path(root, f"coco/coco_pope_{category}.json"), ("image", "text", "label")):
                labels[category, row["image"], row["text"]] = row["label"]
        told = {row["question_id"]: (row["category"], row["image"], _bare(row["text"])) for row in asked}
        return {item_key(key): Expected(labels.get(about, ""), about[0]) for key, about in told.items()}


def says_yes(text: str) -> bool:
    """Reads an answer as LLaVA does: what does not say no says yes."""
    return not {"No", "no", "not"} & set(text.split(".")[0].replace(",", "").split(" "))


def _by_id(found: dict[str, Answer], asked: list[Row], rows: list[Row]) -> tuple[list[str], list[bool], list[bool]]:
    """Returns a category's question ids, what was said to each (if nothing, the wrong thing), and the labels."""
    label_of = {(row["image"], row["text"]): _label(row) for row in rows}
    ids, said, labels = [], [], []
    for row in asked:
        key = str(row["question_id"])
        label = label_of.get((row["image"], _bare(row["text"])))
        if label is None:
            raise UserError(f"POPE's question {key} is not among the labels of {row['category']!r}; is a file damaged?")
        ids.append(key)
        labels.append(label)
        said.append(says_yes(found[key].text) if key in found else not label)
    return ids, said, labels


def _bare(text: str) -> str:
    return text.removesuffix(f"\n{SHORT_PROMPT}")


def _label(row: Row) -> bool:
    return row["label"] != "no"


def _figures(said: list[bool], labels: list[bool]) -> dict[str, float]:
    """Returns the figures in percent; where LLaVA's scorer would divide by zero, they are 0."""
    pairs = list(zip(said, labels, strict=False))
    hits, named, there = pairs.count((True, True)), sum(yes for yes, _ in pairs), sum(label for _, label in pairs)
    precision, recall = _ratio(hits, named), _ratio(hits, there)
    figures = {
        "f1": _ratio(2 * precision * recall, precision + recall),
        "accuracy": _ratio(hits + pairs.count((False, False)), len(pairs)),
        "precision": precision,
        "recall": recall,
        "yes_ratio": _ratio(sum(said), len(said)),
    }
    return {name: 100 * value for name, value in figures.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
