"""TextVQA (arXiv 1904.08920), validation questions of version 0.5.1, with OCR tokens in the prompt as LLaVA has it."""

from collections import Counter
from pathlib import Path

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import EVAL_ZIP, Benchmark, DataFile, Expected, Scores, item_key, mean
from llava_sp.eval.benchmarks.vqa_accuracy import full_stops, normalise, soft_score, told_by
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json

TRUTHS = "TextVQA_0.5.1_val.json"
OCR_LINE = "Reference OCR token:"


class TextVqa(Benchmark):
    """TextVQA, scored as by LLaVA's `eval_textvqa`; a question's id is its image's, so its wording counts too."""

    name = "textvqa"
    title = "TextVQA"
    folder = "textvqa"
    question_file = "llava_textvqa_val_v051_ocr.jsonl"
    images = "train_images"
    files = (
        DataFile(question_file, EVAL_ZIP, "the questions"),
        DataFile(TRUTHS, f"dl.fbaipublicfiles.com/textvqa/data/{TRUTHS}", "people's answers"),
        DataFile(images, "dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", "the images"),
    )

    def score(self, answers: Answers, root: Path, *, strict: bool = False, reviews: Path | None = None) -> Scores:
        """See `Benchmark.score`."""
        truths = self._truths(root)
        items: dict[str, float] = {}
        scores: list[float] = []
        notes: Counter[str] = Counter()
        seen: dict[tuple[str, str], str] = {}
        for answer in answers:
            key = str(answer.question_id), question_of(answer.prompt)
            if key not in truths:
                raise UserError(
                    f"TextVQA has no question {key[1]!r} about the image {key[0]!r}; are these its answers, and with "
                    "the prompts that they were given to?"
                )
            if key in seen:
                notes["duplicate"] += 1
                if strict:
                    if seen[key] != answer.text:
                        raise UserError(f"{key} has two answers, {seen[key]!r} and {answer.text!r}; keep one.")
                    continue
            seen[key] = answer.text
            given = normalise(answer.text, strict=strict)
            scores.append(soft_score(given, [normalise(person, strict=strict) for person in truths[key]]))
            items[item_key(*answer.key)] = scores[-1]
        if not scores:
            raise self.foreign(answers)
        missing = [key for key in truths if key not in seen]
        if strict:
            scores += [0.0] * len(missing)
            items |= {item_key(*key): 0.0 for key in missing}
        counted = "a missing answer is wrong" if strict else "mean over the answers that are there, as there"
        return Scores(
            headline="accuracy",
            metrics={"accuracy": 100.0 * mean(scores)},
            items=items,
            rule=f"M4C's evaluator as in LLaVA; {counted}. {full_stops(strict)}",
            notes=dict(+notes) | ({"missing": len(missing)} if missing else {}),
        )

    def expected(self, root: Path) -> dict[str, Expected]:
        """See `Benchmark.expected`."""
        truths = self._truths(root)
        people = {
            item_key(*question.key): truths.get((str(question.id), question_of(question.prompt)), [])
            for question in self.questions(root)
        }
        return {key: Expected(told_by(answers)) for key, answers in people.items()}

    def _truths(self, root: Path) -> dict[tuple[str, str], list[str]]:
        path = self.path(root, TRUTHS)
        try:
            truths = {
                (str(row["image_id"]), row["question"].lower()): row["answers"] for row in read_json(path)["data"]
            }
            if any(len(people) != 10 for people in truths.values()):
                raise UserError(f"{path} has a question without ten people's answers; is it the validation file?")
        except (AttributeError, TypeError, KeyError):
            raise UserError(f"{path} does not hold TextVQA's annotations.") from None
        return truths


def question_of(prompt: str) -> str:
    """Finds the question in a prompt of two lines, or of three with OCR tokens, which may come first; as LLaVA does."""
    lines = prompt.split("\n")
    with_tokens = len(lines) == 3 and f"{OCR_LINE} " in prompt
    if not with_tokens and len(lines) != 2:
        raise UserError(f"The prompt {prompt!r} is not one of TextVQA's: question, {OCR_LINE!r} ..., how to answer.")
    return lines[1 if with_tokens and prompt.startswith(OCR_LINE) else 0].lower()
