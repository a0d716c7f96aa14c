"""The soft score of visual question answering: an answer counts in full if three of ten people gave it.

Two evaluators are in use, and they differ. VQAv2's (github.com/GT-Vision-Lab/VQA) prepares the model's answer, and
people's answers only in part, and not at all where they agree. TextVQA's (M4C's, which LLaVA brings along as
`m4c_evaluator`) prepares both alike, and LLaVA prepares what it hands in to VQAv2's server with it as well.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llava_sp.eval.answers import Answers
from llava_sp.eval.benchmarks.base import STOPS, Benchmark, Expected, Scores, item_key, mean

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32  # both evaluators pass the flag re.UNICODE where `re.sub` takes a count

_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've  he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't "
    "must've needn't not've  o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's  someone'd someone'd've someone'll someone's something'd something'd've "
    "something'll that's there'd there'd've  there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's  what've when's where'd where's where've who'd who'd've "
    "who'll who's who've why'll why're why's won't would've  wouldn't wouldn't've y'all y'all'll y'all'd've you'd "
    "you'd've you'll you're you've"
).split()
_CONTRACTED = {"somebody'd": "somebodyd"} | {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS for at, letter in enumerate(word) if letter == "'"
}
"""Each contraction by its forms that lack one apostrophe. The first entry is the wrong way round in both evaluators."""


@dataclass(frozen=True)
class Truth:
    """What people answered to a question.

    Attributes:
        id: The question's id.
        category: The kind of answer.
        answers: The people's answers.
    """

    id: str | int
    category: str
    answers: list[str]


def normalise(text: str, *, strict: bool = False) -> str:
    """Prepares an answer as LLaVA's `m4c_evaluator` does; `strict` removes all full stops, not only 32."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(_without_punctuation(_one_line(text), strict=strict))


def soft_score(given: str, answers: Sequence[str]) -> float:
    """Returns the mean over the people of min(1, others who gave the answer / 3), between 0 and 1."""
    agree = [answer == given for answer in answers]
    return mean(min(1, (sum(agree) - same) / 3) for same in agree)


def official_score(given: str, answers: Sequence[str], *, strict: bool = False) -> float:
    """Returns the score of VQAv2's evaluator, between 0 and 1."""
    given = _plain_words(_without_punctuation(_one_line(given), strict=strict))
    if len(set(answers)) > 1:
        answers = [_without_punctuation(answer, strict=strict) for answer in answers]
    return soft_score(given, answers)


def score_vqa(benchmark: Benchmark, answers: Answers, truths: list[Truth], *, strict: bool) -> Scores:
    """Scores answers with VQAv2's evaluator, prepared as LLaVA hands them in.

    Raises:
        UserError: An answer is missing, at which the evaluator stops; `strict` counts it as wrong.
    """
    found, notes = benchmark.align(answers, [truth.id for truth in truths], strict=strict)
    if not strict:
        benchmark.need_all((truth.id for truth in truths), found, STOPS)
    items: dict[str, float] = {}
    by_category: dict[str, list[float]] = defaultdict(list)
    for truth in truths:
        answer = found.get(str(truth.id))
        score = official_score(normalise(answer.text, strict=strict), truth.answers, strict=strict) if answer else 0.0
        items[item_key(truth.id)] = score
        by_category[truth.category].append(score)
    return Scores(
        headline="accuracy",
        metrics={"accuracy": 100 * mean(items.values())},
        categories={category: 100 * mean(scores) for category, scores in sorted(by_category.items())},
        items=items,
        rule=f"VQAv2's evaluator on answers prepared by LLaVA's m4c_evaluator. {full_stops(strict)}",
        notes=dict(notes),
    )


def expected_by(truths: list[Truth]) -> dict[str, Expected]:
    """Returns what people answered, for `Benchmark.expected`."""
    return {item_key(truth.id): Expected(told_by(truth.answers), truth.category) for truth in truths}


def told_by(people: Sequence[str]) -> str:
    """Lists people's answers, the most frequent first, each with how many gave it."""
    return ", ".join(f"{answer} ({count})" for answer, count in Counter(people).most_common())


def full_stops(strict: bool) -> str:
    """Says what becomes of full stops, for `Scores.rule`."""
    return "All full stops go." if strict else f"Of full stops, {_PERIODS_REMOVED} at most go, as there."


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str, *, strict: bool) -> str:
    """Removes a mark if it stands beside a blank somewhere, or if there is a number like 1,000; else it is a blank."""
    result = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank or _COMMA_IN_NUMBER.search(text) else " ")
    return _PERIOD.sub("", result, count=0 if strict else _PERIODS_REMOVED)


def _plain_words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in _ARTICLES)
