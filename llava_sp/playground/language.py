"""What is said about a scene: captions, and questions of four tasks with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from llava_sp.playground.scenes import DIGITS, SHAPES, Thing

T = TypeVar("T")

POSITION, READING, COUNTING, EXISTENCE = TASKS = ("position", "reading", "counting", "existence")
ROUNDS = 10  # questions in a training conversation

Turn = dict[str, str]

_SMALL_WORDS = {"is", "the", "in", "are", "there", "a", "many", "digit"}


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        task: One of `TASKS`.
        form: The wording with its blanks, such as "Is there a {name}?".
        text: The question.
        answer: The right answer.
    """

    task: str
    form: str
    text: str
    answer: str


def _ask(task: str, form: str, answer: str, **blanks: str) -> Question:
    return Question(task, form, form.format(**blanks), answer)


def caption(things: tuple[Thing, ...]) -> str:
    """Describes a scene in reading order: "northwest red circle, northeast blue seven, ..."."""
    return ", ".join(f"{thing.place} {thing.colour} {thing.name}" for thing in things) + "."


def patch_words(things: tuple[Thing, ...], grid: int) -> list[tuple[str, ...]]:
    """Describes a scene by the words of each of `grid` x `grid` patches, row by row, as a tower's features will.

    Args:
        things: The scene.
        grid: Patches a side, a multiple of 3.

    Returns:
        For each patch the place, colour and name of the thing that it belongs to: three words, or none.
    """
    at = {(thing.row, thing.column): (thing.place, thing.colour, thing.name) for thing in things}
    side = grid // 3
    return [at.get((row // side, column // side), ()) for row in range(grid) for column in range(grid)]


def ask_position(thing: Thing) -> Question:
    """Asks where a thing is."""
    return _ask(POSITION, "Where is the {name}?", thing.place, name=thing.name)


def ask_reading(digit: Thing) -> Question:
    """Asks which digit is at a place."""
    return _ask(READING, "Which digit is in the {place}?", digit.name, place=digit.place)


def ask_counting(things: tuple[Thing, ...]) -> list[Question]:
    """Asks for all the numbers there are to ask for."""
    digits = sum(thing.is_digit for thing in things)
    counts = {"digits": digits, "shapes": len(things) - digits, "things": len(things)}
    return [_ask(COUNTING, f"How many {what} are there?", DIGITS[count]) for what, count in counts.items()]


def ask_existence(name: str, answer: str) -> Question:
    """Asks whether there is a thing of that name: the caller knows the answer, "Yes" or "No"."""
    return _ask(EXISTENCE, "Is there a {name}?", answer, name=name)


def absent(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """Names something that a scene lacks: a shape as often as shapes are there, while one is missing."""
    shapes, digits = ([name for name in kind if name not in {t.name for t in things}] for kind in (SHAPES, DIGITS))
    share = sum(not thing.is_digit for thing in things) / len(things)
    return str(rng.choice(shapes if shapes and rng.random() < share else digits))


def training_questions(things: tuple[Thing, ...], rng: np.random.Generator, rounds: int = ROUNDS) -> list[Question]:
    """Returns up to `rounds` different questions in random order, the tasks in turn as long as they last.

    Existence is asked as often as there are things, each time by a toss of a coin of one of them or of none.
    """
    existence: dict[str, Question] = {}
    while len(existence) < len(things):
        if rng.random() < 0.5:
            question = ask_existence(things[rng.integers(len(things))].name, "Yes")
        else:
            question = ask_existence(absent(things, rng), "No")
        existence[question.text] = question
    pools = [
        [ask_position(thing) for thing in things],
        [ask_reading(thing) for thing in things if thing.is_digit],
        ask_counting(things),
        list(existence.values()),
    ]
    shuffled = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    in_turn = [question for turn in zip_longest(*shuffled) for question in turn if question is not None]
    chosen = in_turn[:rounds]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def held_out_questions(things: tuple[Thing, ...], rng: np.random.Generator, *, present: bool) -> list[Question]:
    """Returns one question of each task; that of existence is about something present, or about something absent."""

    def one_of(some: Sequence[T]) -> T:
        return some[int(rng.integers(len(some)))]

    return [
        ask_position(one_of(things)),
        ask_reading(one_of([thing for thing in things if thing.is_digit])),
        one_of(ask_counting(things)),
        ask_existence(one_of(things).name, "Yes") if present else ask_existence(absent(things, rng), "No"),
    ]


def notes(questions: list[Question]) -> str:
    """Puts questions and answers in few words: "Where circle northwest. How shapes two. ..."."""
    lines = (" ".join(word for word in q.text[:-1].split() if word not in _SMALL_WORDS) for q in questions)
    return " ".join(f"{line} {question.answer}." for line, question in zip(lines, questions, strict=True))


def conversation(questions: list[Question], before: str) -> list[Turn]:
    """Lays questions out as LLaVA's turns; `before`, the image mark or a description, is the first line."""
    turns = []
    for i, question in enumerate(questions):
        turns.append({"from": "human", "value": question.text if i else f"{before}\n{question.text}"})
        turns.append({"from": "gpt", "value": question.answer})
    return turns
