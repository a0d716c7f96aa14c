"""What a benchmark is: its data files, its questions, how they are asked, how answers are scored or handed in."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava_sp.eval.answers import Answer, Answers
from llava_sp.eval.inference import GenerationSettings
from llava_sp.eval.questions import Question, read_questions
from llava_sp.utils.errors import UserError

LOADER = GenerationSettings(temperature=0, max_new_tokens=128)
"""How LLaVA-1.5's figures were generated where LLaVA uses `model_vqa_loader`."""

MODEL_VQA = GenerationSettings(temperature=0, max_new_tokens=1024)
"""The same where LLaVA uses `model_vqa`, `model_vqa_science` or `model_vqa_mmbench`."""

EVAL_ZIP = "eval.zip of LLaVA's docs/Evaluation.md"
STOPS = "The published scorer stops at this; --strict counts them as wrong."
NOT_WRITTEN = "Nothing is written."
SHORT_PROMPT = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class DataFile:
    """A file or folder that a benchmark needs.

    Attributes:
        name: Path under the benchmark's folder, as LLaVA has it. To score, the file may also lie flat in the folder.
        source: Where it comes from.
        what: What it holds.
        optional: Whether the benchmark does without.
    """

    name: str
    source: str
    what: str
    optional: bool = False


@dataclass(frozen=True)
class Scores:
    """How a set of answers did.

    Attributes:
        headline: The key of `metrics` that tables quote.
        metrics: Figures on the scale on which they are published.
        categories: The headline's figure, or what is published instead, of each category.
        items: The score of each question by `item_key`.
        rule: How it was scored, with the quirks that apply.
        notes: Counts of what was odd: `missing`, `duplicate`, `unknown`, `unparsable`.
        details: What else a reader of the scores should know, such as the judge's name.
    """

    headline: str
    metrics: dict[str, float]
    items: dict[str, float]
    rule: str
    categories: dict[str, float] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What a reader of an answer wants to know beside it.

    Attributes:
        answer: What is right.
        category: The question's category, as in `Scores.categories` where each question has one.
    """

    answer: str
    category: str = ""


class Benchmark:
    """One benchmark.

    Attributes:
        name: What commands call it.
        title: What tables call it.
        folder: Its folder under the data root, as LLaVA has it.
        files: What it needs, its images included.
        question_file: The file of its questions.
        images: The folder that its questions' images are relative to, under `folder`.
        settings: How its answers are generated.
        scored: Here, by a server that takes what `submission` writes, or here with the help of a judge (a model).
        suffix: That of the file that `submission` writes; `None` if there is nothing to hand in.
    """

    name: str
    title: str
    folder: str
    files: tuple[DataFile, ...]
    question_file: str
    images: str
    settings: GenerationSettings = LOADER
    scored: Literal["here", "server", "judge"] = "here"
    suffix: str | None = None

    def missing(self, root: Path) -> list[DataFile]:
        """Returns the files that the benchmark cannot do without and that are not in its folder `root`."""
        return [file for file in self.files if not file.optional and self.find(root, file.name) is None]

    def path(self, root: Path, name: str) -> Path:
        """Returns where a file is.

        Raises:
            UserError: It is missing; the message says what it is, from where, and where to put it.
        """
        found = self.find(root, name)
        if found is None:
            file = next(file for file in self.files if file.name == name)
            raise UserError(
                f"{self.title} needs {Path(root) / name} ({file.what}), which is not there; "
                f"it comes from {file.source}."
            )
        return found

    def questions(self, root: Path) -> list[Question]:
        """Reads the questions in the order of their file, each with exactly the prompt that LLaVA sends.

        Args:
            root: The benchmark's folder.

        Raises:
            UserError: The file is missing or broken.
        """
        return read_questions(self.path(root, self.question_file))

    def first(self, questions: list[Question], count: int) -> list[Question]:
        """Returns the first questions, for a look; and what else is asked of them, where that makes one score."""
        return questions[:count]

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """Scores answers.

        Args:
            answers: The answers, in the order of their file.
            root: The benchmark's folder.
            strict: Whether to mend what is odd about the published scorer; otherwise the result is the one it gives.
            reviews: Where a judge's reviews are kept, for a judge's benchmark alone; those that are there are reused.

        Raises:
            UserError: A file is missing or broken, these are not answers to this benchmark, the published scorer would
                stop at them too, or there is no score without the benchmark's server.
        """
        raise UserError(f"{self.title} is scored by its server; hand in the file that is written here.")

    def expected(self, root: Path) -> dict[str, Expected]:
        """Returns what is right by `item_key`; nothing where the benchmark's files do not say.

        Raises:
            UserError: A file is missing or broken.
        """
        return {}

    def submission(self, answers: Answers, root: Path, output: Path) -> None:
        """Writes the file that the benchmark's server, or its own evaluator, takes.

        Args:
            answers: The answers.
            root: The benchmark's folder.
            output: The file to write.

        Raises:
            UserError: An answer is missing, or these are not answers to this benchmark.
        """
        raise UserError(f"Nothing is handed in for {self.title}; it is scored here.")

    def align(
        self, answers: Answers, expected: Iterable[str | int], *, strict: bool = False
    ) -> tuple[dict[str, Answer], Counter[str]]:
        """Finds the answer to each question by its id; of several, the last one, as in LLaVA's scorers.

        Args:
            answers: The answers.
            expected: The ids of all questions.
            strict: Whether two different answers to a question are an error.

        Returns:
            The answers by `str(id)`, those there are; and counts of what is missing, duplicate and unknown.

        Raises:
            UserError: No answer belongs to the benchmark.
        """
        ids = dict.fromkeys(map(str, expected))
        found: dict[str, Answer] = {}
        notes: Counter[str] = Counter()
        for answer in answers:
            key = str(answer.question_id)
            notes["unknown"] += key not in ids
            if key in found:
                notes["duplicate"] += 1
                if strict and found[key].text != answer.text:
                    raise UserError(
                        f"The question {key!r} has two answers, {found[key].text!r} and {answer.text!r}; keep one."
                    )
            if key in ids:
                found[key] = answer
        if not found:
            raise self.foreign(answers)
        notes["missing"] = len(ids) - len(found)
        return found, +notes

    def foreign(self, answers: Answers) -> UserError:
        """Returns the error for answers to other questions."""
        given = f"the first is to {answers[0].question_id!r}" if answers else "the file is empty"
        return UserError(
            f"The answers are not to {self.title}: none of {len(answers)} is to one of its questions; {given}."
        )

    def need_all(self, expected: Iterable[str | int], found: dict[str, Answer], otherwise: str) -> None:
        """Stops at questions without an answer.

        Args:
            expected: The ids of all questions.
            found: The answers, as from `align`.
            otherwise: What the user can do, or what becomes of it.

        Raises:
            UserError: An answer is missing; the message names the first.
        """
        missing = [key for key in expected if str(key) not in found]
        if missing:
            raise UserError(
                f"{len(missing)} answers to {self.title} are missing, the first to {missing[0]!r}. {otherwise}"
            )

    def find(self, root: Path, name: str) -> Path | None:
        """Returns where a file is, `None` if it is missing."""
        return next((path for path in (Path(root) / name, Path(root) / Path(name).name) if path.exists()), None)


def item_key(identity: str | int, prompt: str | None = None) -> str:
    """Returns the key of `Scores.items`: the question's id; where several share one, its prompt too."""
    return str(identity) if prompt is None else f"{identity} {prompt}"


def mean(values: Iterable[float]) -> float:
    """Returns the mean, added up in order as the published scorers do; 0 if there is nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
