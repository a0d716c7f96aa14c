"""What is said about scenes: right, balanced, without repetition."""

import re
from collections import Counter
from functools import partial

from llava_sp.playground.language import (
    ROUNDS,
    TASKS,
    caption,
    conversation,
    held_out_questions,
    notes,
    patch_words,
    training_questions,
)
from llava_sp.playground.scenes import TRAIN, Thing, generator, sample_scene

SCENE = (
    Thing("circle", "red", 0, 0),
    Thing("seven", "blue", 0, 2),
    Thing("four", "red", 1, 1),
    Thing("square", "green", 2, 0),
)


def right_answer(text, things):
    """Answers a question by looking at its words alone, not at the code that asked it."""
    words = re.findall(r"\w+", text)
    named = [thing for thing in things if thing.name in words]
    if words[0] == "Where":
        return named[0].place
    if words[0] == "Is":
        return "Yes" if named else "No"
    if words[0] == "How":
        kinds = {"digits": [True], "shapes": [False], "things": [True, False]}[words[2]]
        return ("zero", "one", "two", "three", "four", "five")[sum(thing.is_digit in kinds for thing in things)]
    meant = [thing for thing in things if thing.is_digit and thing.place in words]
    assert len(meant) == 1
    return meant[0].name


def scenes_and_questions(ask, count=100):
    for index in range(count):
        rng = generator(0, TRAIN, index)
        things = sample_scene(rng)
        yield things, ask(things, rng)


def test_training_conversations_ask_different_questions_with_right_answers():
    for things, questions in scenes_and_questions(training_questions):
        assert len({question.text for question in questions}) == len(questions) == ROUNDS
        for question in questions:
            assert question.answer == right_answer(question.text, things)


def test_existence_is_balanced_and_every_task_is_trained():
    tasks, existence = Counter(), Counter()
    for _, questions in scenes_and_questions(training_questions, 400):
        tasks.update(question.task for question in questions)
        existence.update(question.answer for question in questions if question.task == "existence")
    assert set(tasks) == set(TASKS)
    assert min(tasks.values()) > 400
    assert 0.45 < existence["Yes"] / existence.total() < 0.55


def test_held_out_questions_are_one_of_each_task_with_right_answers():
    for present in (True, False):
        for things, questions in scenes_and_questions(partial(held_out_questions, present=present)):
            assert [question.task for question in questions] == list(TASKS)
            assert questions[-1].answer == ("Yes" if present else "No")
            for question in questions:
                assert question.answer == right_answer(question.text, things)


def test_caption():
    assert caption(SCENE) == "northwest red circle, northeast blue seven, center red four, southwest green square."


def test_patch_words_say_what_covers_each_patch():
    words = patch_words(SCENE, 6)
    assert len(words) == 36
    assert words[0] == words[1] == words[6] == words[7] == ("northwest", "red", "circle")
    assert words[5] == ("northeast", "blue", "seven")
    assert words[2] == words[35] == ()


def test_conversation_begins_with_what_stands_before_it():
    questions = training_questions(SCENE, generator(0, TRAIN, 0), rounds=4)
    turns = conversation(questions, "<image>")
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * 4
    assert turns[0]["value"] == f"<image>\n{questions[0].text}"
    assert turns[2]["value"] == questions[1].text
    assert turns[7]["value"] == questions[3].answer


def test_notes_keep_what_matters():
    questions = training_questions(SCENE, generator(0, TRAIN, 0), rounds=4)
    text = notes(questions)
    assert text.count(".") == 4
    for question, line in zip(questions, text.split(". "), strict=True):
        assert line.removesuffix(".").endswith(question.answer)
        assert set(line.removesuffix(".").split()) <= set(re.findall(r"\w+", f"{question.text} {question.answer}"))
