"""What is said about a scene: captions, and questions of four tasks with their answers."""

from dataclasses import dataclass

import numpy as np

from llava_sp.playground.scenes import COLOURS, SHAPES, Thing

POSITION, READING, COUNTING, EXISTENCE = TASKS = ("position", "reading", "counting", "existence")
ROUNDS = 10  # questions in a training conversation

Turn = dict[str, str]

_SMALL_WORDS = {"is", "the", "at", "are", "there", "a", "many"}


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        task: One of `TASKS`.
        form: The wording with its blanks, such as "How many {shape}s are there?".
        text: The question.
        answer: The right answer.
    """

    task: str
    form: str
    text: str
    answer: str


def _ask(task: str, form: str, answer: str, **blanks: str) -> Question:
    return Question(task, form, form.format(**blanks), answer)


def label(thing: Thing) -> str:
    """Names a thing so that it is the only one meant: "digit 7", "red circle"."""
    return f"digit {thing.name}" if thing.is_digit else f"{thing.colour} {thing.name}"


def caption(things: tuple[Thing, ...]) -> str:
    """Describes a scene in reading order: "top left red circle, top right blue 7, ..."."""
    return ", ".join(f"{thing.place} {thing.colour} {thing.name}" for thing in things) + "."


def patch_words(things: tuple[Thing, ...], grid: int) -> list[tuple[str, ...]]:
    """Describes a scene by the words of each of `grid` x `grid` patches, row by row, as a tower's features will.

    Args:
        things: The scene.
        grid: Patches a side, a multiple of 3.

    Returns:
        For each patch the place, colour and name of the thing that it belongs to: four words, or none.
    """
    at = {(thing.row, thing.column): (*thing.place.split(), thing.colour, thing.name) for thing in things}
    side = grid // 3
    return [at.get((row // side, column // side), ()) for row in range(grid) for column in range(grid)]


def ask_position(thing: Thing) -> Question:
    """Asks where a thing is."""
    form = "Where is the digit {digit}?" if thing.is_digit else "Where is the {colour} {shape}?"
    return _ask(POSITION, form, thing.place, digit=thing.name, colour=thing.colour, shape=thing.name)


def ask_reading(digit: Thing, things: tuple[Thing, ...], rng: np.random.Generator) -> Question:
    """Asks which digit is at a place, or, where only one digit has its colour, half the time which one has it."""
    same_colour = [thing for thing in things if thing.is_digit and thing.colour == digit.colour]
    if len(same_colour) == 1 and rng.random() < 0.5:
        return _ask(READING, "Which digit is {colour}?", digit.name, colour=digit.colour)
    return _ask(READING, "Which digit is at the {place}?", digit.name, place=digit.place)


def ask_counting(things: tuple[Thing, ...], count: int, rng: np.random.Generator) -> list[Question]:
    """Asks `count` different questions for numbers, so that rarer answers are as likely as common ones."""
    questions = [
        _ask(COUNTING, "How many {shape}s are there?", str(sum(t.name == shape for t in things)), shape=shape)
        for shape in SHAPES
    ]
    questions += [
        _ask(COUNTING, "How many {colour} things are there?", str(sum(t.colour == c for t in things)), colour=c)
        for c in COLOURS
    ]
    questions.append(_ask(COUNTING, "How many digits are there?", str(sum(t.is_digit for t in things))))
    answers = [question.answer for question in questions]
    weights = np.array([1 / answers.count(answer) for answer in answers])
    chosen = rng.choice(len(questions), count, replace=False, p=weights / weights.sum())
    return [questions[i] for i in chosen]


def ask_existence(things: list[Thing], answer: str) -> list[Question]:
    """Asks for each thing whether there is one such: the caller knows the answer, "Yes" or "No"."""
    forms = {True: "Is there a digit {digit}?", False: "Is there a {colour} {shape}?"}
    return [_ask(EXISTENCE, forms[t.is_digit], answer, digit=t.name, colour=t.colour, shape=t.name) for t in things]


def absent(things: tuple[Thing, ...], count: int, rng: np.random.Generator) -> list[Thing]:
    """Returns things that a scene lacks, as often digits as shapes are there; their places mean nothing."""
    labels = {label(thing) for thing in things}
    digits = [Thing(str(digit), "red", 0, 0) for digit in range(10) if f"digit {digit}" not in labels]
    shapes = [Thing(s, c, 0, 0) for s in SHAPES for c in COLOURS if f"{c} {s}" not in labels]
    share = sum(thing.is_digit for thing in things) / len(things)
    wanted = int(rng.binomial(count, share))
    return [digits[i] for i in rng.choice(len(digits), wanted, replace=False)] + [
        shapes[i] for i in rng.choice(len(shapes), count - wanted, replace=False)
    ]


def training_questions(things: tuple[Thing, ...], rng: np.random.Generator, rounds: int = ROUNDS) -> list[Question]:
    """Returns `rounds` different questions in random order, none of which gives away another's answer.

    Two questions are of existence, each about an absent thing half the time. Of the things that these leave, as
    many as half the rounds are asked for, by their place or, most digits, by reading. Counting fills up.
    """
    shuffled = [things[i] for i in rng.permutation(len(things))]
    present = int(rng.binomial(2, 0.5))
    questions = ask_existence(shuffled[:present], "Yes") + ask_existence(absent(things, 2 - present, rng), "No")
    for thing in shuffled[present : present + rounds // 2]:
        read = thing.is_digit and rng.random() < 0.8
        questions.append(ask_reading(thing, things, rng) if read else ask_position(thing))
    questions += ask_counting(things, rounds - len(questions), rng)
    return [questions[i] for i in rng.permutation(rounds)]


def held_out_questions(things: tuple[Thing, ...], rng: np.random.Generator) -> list[Question]:
    """Returns one question of each task."""
    digits = [thing for thing in things if thing.is_digit]
    anything = things[rng.integers(len(things))]
    present = [things[rng.integers(len(things))]]
    return [
        ask_position(anything),
        ask_reading(digits[rng.integers(len(digits))], things, rng),
        *ask_counting(things, 1, rng),
        *(ask_existence(present, "Yes") if rng.random() < 0.5 else ask_existence(absent(things, 1, rng), "No")),
    ]


def notes(questions: list[Question]) -> str:
    """Puts questions and answers in few words: "Where red circle top left. How circles 1. ..."."""
    lines = (" ".join(word for word in q.text[:-1].split() if word not in _SMALL_WORDS) for q in questions)
    return " ".join(f"{line} {question.answer}." for line, question in zip(lines, questions, strict=True))


def conversation(questions: list[Question], before: str) -> list[Turn]:
    """Lays questions out as LLaVA's turns; `before`, the image mark or a description, is the first line."""
    turns = []
    for i, question in enumerate(questions):
        turns.append({"from": "human", "value": question.text if i else f"{before}\n{question.text}"})
        turns.append({"from": "gpt", "value": question.answer})
    return turns
