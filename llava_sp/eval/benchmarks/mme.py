"""MME (arXiv 2306.13394): two questions an image, to be answered with yes and no."""

from collections import defaultdict
from pathlib import Path

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, SHORT_PROMPT, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import write_text

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_NO = "Please answer yes or no."
RELEASE = "MME_Benchmark_release_version"

Key = tuple[str, str, str]
"""Category, file of questions, and question."""


class Mme(Benchmark):
    """MME, scored as by LLaVA's `convert_answer_to_mme` and MME's own `calculation`."""

    name = "mme"
    title = "MME"
    folder = "MME"
    question_file = "llava_mme.jsonl"
    images = RELEASE
    suffix = ""
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(RELEASE, "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models", "images, questions, answers"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`; the headline is the sum of perception."""
        truths = self._truths(root)
        given = self._given(answers, truths)
        notes = {
            "missing": len(truths) - len({key for key, _ in given}),
            "duplicate": len(given) - len({key for key, _ in given}),
            "unparsable": sum(verdict(answer.text) is None for _, answer in given),
        }
        pairs = _by_image(given, truths) if strict else self._by_position(given)
        items: dict[str, float] = {}
        scores: dict[str, float] = {}
        for category in PERCEPTION + COGNITION:
            rights: list[list[bool]] = []
            for pair in pairs[category]:
                rights.append([answer is not None and verdict(answer.text) == truths[key] for key, answer in pair])
                for (key, answer), right in zip(pair, rights[-1], strict=True):
                    name = item_key(*answer.key) if answer else item_key(f"{key[0]}/{key[1]}", key[2])
                    items[name] = float(right)
            accuracy = mean(right for pair in rights for right in pair)
            scores[category] = accuracy * 100 + mean(all(pair) for pair in rights) * 100
        sums = {
            "perception": sum(scores[category] for category in PERCEPTION),
            "cognition": sum(scores[category] for category in COGNITION),
        }
        pairing = "by image; a missing answer is wrong" if strict else "by position, as in MME's calculation"
        return Scores(
            headline="perception",
            metrics=sums | {"total": sum(sums.values())},
            categories=scores,
            items=items,
            rule=f"yes or no among the first four letters; accuracy + accuracy of pairs, x 100; pairs {pairing}.",
            notes={name: count for name, count in notes.items() if count},
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        truths = self._truths(root)
        asked = [Answer(question.id, question.prompt, "", {}) for question in self.questions(root)]
        return {
            item_key(*question.key): Expected("Yes" if truths[key] else "No", key[0])
            for key, question in self._given(asked, truths)
        }

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes a folder with a text file for each category, which MME's own `calculation` takes."""
        truths = self._truths(root)
        lines: dict[str, list[str]] = defaultdict(list)
        for (category, file, question), answer in self._given(answers, truths):
            truth = "Yes" if truths[category, file, question] else "No"
            lines[category].append("\t".join((file, question, truth, " ".join(answer.text.split()))))
        for category, texts in lines.items():
            write_text(output / f"{category}.txt", "".join(f"{text}\n" for text in texts))

    def _truths(self, root: Path) -> dict[Key, bool]:
        """Reads what is true from the text files beside the images."""
        release = self.path(root, RELEASE)
        truths: dict[Key, bool] = {}
        for category in PERCEPTION + COGNITION:
            apart = release / category / "questions_answers_YN"
            for path in sorted((apart if apart.is_dir() else release / category).glob("*.txt")):
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    question, _, truth = line.strip().partition("\t")
                    if not question:
                        continue
                    if truth.lower() not in ("yes", "no"):
                        raise UserError(f"{path}: {line!r} is not a question and Yes or No with a tab between.")
                    truths[category, path.name, question] = truth.lower() == "yes"
        if not truths:
            raise UserError(f"{release} has no folder of an MME category with questions and answers.")
        return truths

    def _given(self, answers: Answers, truths: dict[Key, bool]) -> list[tuple[Key, Answer]]:
        """Finds the question to each answer, by its prompt."""
        given = []
        for answer in answers:
            category, _, image = str(answer.question_id).partition("/")
            file = f"{image.rpartition('/')[2].split('.')[0]}.txt"
            question = answer.prompt.replace(SHORT_PROMPT, "").strip()
            wordings = (question, f"{question} {YES_NO}", f"{question}  {YES_NO}")  # some have two blanks
            keys = [(category, file, wording) for wording in wordings if (category, file, wording) in truths]
            if not keys:
                raise UserError(f"MME has no question {question!r} about {answer.question_id!r}; are these its?")
            given.append((keys[0], answer))
        if not given:
            raise self.foreign(answers)
        return given

    def _by_position(self, given: list[tuple[Key, Answer]]) -> dict[str, list[list[tuple[Key, Answer | None]]]]:
        """Pairs the answers of each category as they follow each other."""
        pairs: dict[str, list[list[tuple[Key, Answer | None]]]] = {}
        for category in PERCEPTION + COGNITION:
            listed: list[tuple[Key, Answer | None]] = [entry for entry in given if entry[0][0] == category]
            if not listed or len(listed) % 2:
                raise UserError(
                    f"MME's {category!r} has {len(listed)} answers, where two an image are needed. Its own scorer "
                    "stops at this; --strict counts missing answers as wrong."
                )
            pairs[category] = [listed[start : start + 2] for start in range(0, len(listed), 2)]
        return pairs


def verdict(text: str) -> bool | None:
    """Reads yes or no from an answer's first four letters; `None` if neither is there."""
    start = text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def _by_image(
    given: list[tuple[Key, Answer]], truths: dict[Key, bool]
) -> dict[str, list[list[tuple[Key, Answer | None]]]]:
    """Puts together the questions about each image, with their answers or none."""
    answer_to = dict(given)
    pairs: dict[str, dict[str, list[tuple[Key, Answer | None]]]] = defaultdict(lambda: defaultdict(list))
    for key in truths:
        pairs[key[0]][key[1]].append((key, answer_to.get(key)))
    return defaultdict(list, {category: list(images.values()) for category, images in pairs.items()})
