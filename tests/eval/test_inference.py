"""Batched generation: the same as one by one, greedy or sampled."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch

from llava_sp.data.conversation import get_template
from llava_sp.eval import inference
from llava_sp.eval.inference import Failure, GenerationSettings, SeededNoise, generate_answers, prompt_ids, share_of
from llava_sp.eval.questions import Question
from llava_sp.model.loading import build, load
from llava_sp.utils.errors import UserError
from tests.eval.conftest import QUESTIONS

GREEDY = GenerationSettings(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint)


@pytest.fixture
def ask(loaded, image_folder):
    def answers(settings, questions=QUESTIONS, batch_size=1, template="v1"):
        model, processor = loaded
        found = generate_answers(
            model,
            processor,
            questions,
            image_folder=image_folder,
            template=get_template(template),
            settings=settings,
            batch_size=batch_size,
        )
        return {question.id: text for question, text in found}

    return answers


def test_the_prompt_holds_the_image_first_and_ends_where_the_answer_begins(loaded):
    _, processor = loaded
    ids = prompt_ids(QUESTIONS[0], processor, get_template("v1"))
    assert ids.count(processor.image_token_id) == processor.num_image_tokens == 6 + 144
    text = processor.tokenizer.decode([token for token in ids if token != processor.image_token_id])
    assert text.endswith("What is in the image? ASSISTANT:")
    text_only = prompt_ids(QUESTIONS[2], processor, get_template("v1"))
    assert processor.image_token_id not in text_only


def test_the_white_space_around_a_question_is_sent_as_llava_sends_it(loaded):
    _, processor = loaded
    ids = prompt_ids(Question(1, " What is it? \n", "a.png"), processor, get_template("v1"))
    text = processor.tokenizer.decode([token for token in ids if token != processor.image_token_id])
    assert text.endswith("\n What is it? \n ASSISTANT:")


def test_a_placeholder_in_a_question_goes_first_or_is_refused(loaded):
    _, processor = loaded
    template, plain = get_template("v1"), Question(1, "What is it?", "a.png")
    assert prompt_ids(Question(1, "What is <image>it?", "a.png"), processor, template) == prompt_ids(
        plain, processor, template
    )
    with pytest.raises(UserError, match="Question 2 cannot be asked: it holds <image> and comes without an image"):
        prompt_ids(Question(2, "What is <image>?"), processor, template)


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        dataclasses.replace(GREEDY, num_beams=3),
        GenerationSettings(temperature=0.7, top_p=0.9, max_new_tokens=12),
    ],
    ids=["greedy", "beams", "sampling"],
)
def test_batched_answers_are_those_of_one_by_one(settings, ask):
    singles = ask(settings)
    assert set(singles) == {question.id for question in QUESTIONS}
    assert len(set(singles.values())) > 4  # the random model does tell the questions apart
    for batch_size in (2, 3, 16):
        assert ask(settings, batch_size=batch_size) == singles


def test_images_of_several_tiles_are_answered_batched_as_one_by_one(tiny_parts, image_folder):
    overrides = {"sfe_channels": 8, "patch_merge_type": "spatial_unpad"}
    model, processor = build(*map(str, tiny_parts), overrides=overrides, image_aspect_ratio="anyres")
    arguments = {"image_folder": image_folder, "template": get_template("v1"), "settings": GREEDY}
    answers = [
        dict(generate_answers(model, processor, QUESTIONS, batch_size=batch_size, **arguments))
        for batch_size in (1, 3, 16)
    ]
    assert not any(isinstance(answer, Failure) for answer in answers[0].values())
    assert answers[0] == answers[1] == answers[2]


def test_what_questions_about_one_image_share_is_computed_once(loaded, ask):
    texts = ["What is it?", "Is it red?", "Where is the big one, and what does it look like from here?", "Which?"]
    questions = [Question(f"{image} {text}", text, image) for text in texts for image in ("a.png", "b.png", "c.png")]
    singles = ask(GREEDY, questions)
    images = []
    hook = loaded[0].model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(len((args or [kwargs["pixel_values"]])[0])), with_kwargs=True
    )
    assert ask(GREEDY, questions, batch_size=12) == singles
    hook.remove()
    assert images == [3]
    sampled = dataclasses.replace(GREEDY, temperature=0.7)
    assert ask(sampled, questions, batch_size=8) == ask(sampled, questions)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_are_a_partition_that_keeps_an_images_questions_together(ranks):
    questions = [Question(n, "So? " * n, None if n % 5 == 0 else f"{n % 7}.png") for n in range(60)]
    shares = [share_of(questions, rank, ranks) for rank in range(ranks)]
    assert sorted(question.id for share in shares for question in share) == list(range(60))
    for image in {question.image for question in questions} - {None}:
        assert sum(any(question.image == image for question in share) for share in shares) == 1
    if ranks <= 3:
        assert max(map(len, shares)) < 2 * min(map(len, shares))


def test_the_image_and_not_only_the_question_decides(ask):
    text = "What is in the image?"
    answers = ask(GREEDY, [Question(name, text, name) for name in ("a.png", "b.png", "c.png")])
    assert len(set(answers.values())) > 1


def test_generation_is_what_the_model_would_do_by_itself(loaded, ask):
    model, processor = loaded
    question = QUESTIONS[2]
    ids = torch.tensor([prompt_ids(question, processor, get_template("v1"))])
    with torch.no_grad():
        for _ in range(GREEDY.max_new_tokens):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    text = processor.tokenizer.decode(ids[0, -GREEDY.max_new_tokens :], skip_special_tokens=True)
    assert ask(GREEDY)[question.id] == text.strip()


def test_sampling_follows_its_seed_and_leaves_the_global_state_alone(ask):
    sampling = GenerationSettings(temperature=1.0, max_new_tokens=12)
    state = torch.random.get_rng_state()
    first = ask(sampling)
    assert ask(sampling, QUESTIONS[3:]) == {q.id: first[q.id] for q in QUESTIONS[3:]}
    assert ask(dataclasses.replace(sampling, seed=1)) != first
    assert ask(GREEDY) != first
    assert ask(dataclasses.replace(sampling, num_beams=2)) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_question_under_two_names_is_sampled_twice(ask):
    twice = [Question(name, "What is two and two?") for name in ("one", "two")]
    answers = ask(GenerationSettings(temperature=1.0, max_new_tokens=12), twice, batch_size=2)
    assert answers["one"] != answers["two"]


def test_the_noise_samples_the_softmax():
    scores = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    rows = 20_000
    noisy = SeededNoise(range(rows), scores.device)(None, scores.expand(rows, -1))
    shares = torch.bincount(noisy.argmax(dim=1), minlength=4) / rows
    torch.testing.assert_close(shares, scores.softmax(0), atol=0.015, rtol=0)


def test_a_nearly_zero_temperature_is_greedy(ask):
    assert ask(GenerationSettings(temperature=1e-6, max_new_tokens=12)) == ask(GREEDY)


def test_the_answer_ends_before_the_stop_string(loaded, image_folder, ask):
    model, processor = loaded
    longer = ask(GREEDY)[3]
    stop = longer[len(longer) // 2 :].strip()[:2]
    # The conversation, but with a stop string that the random model does generate.
    template = SimpleNamespace(
        render_prompt=get_template("v1").render_prompt, stop=stop, end_token_id=lambda tokenizer: None
    )
    steps = []
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    [(_, text)] = generate_answers(
        model, processor, [QUESTIONS[2]], image_folder=image_folder, template=template, settings=GREEDY
    )
    hook.remove()
    assert text == longer.split(stop)[0].strip()
    assert len(steps) < GREEDY.max_new_tokens


@pytest.mark.parametrize("name", ["v0", "llama_2", "plain"])
def test_every_template_answers(name, ask):
    about_images = [question for question in QUESTIONS if question.image]
    answers = ask(GREEDY, about_images, template=name, batch_size=4)
    assert set(answers) == {question.id for question in about_images}
    assert not any(get_template(name).stop in text for text in answers.values())


def test_a_question_that_a_template_has_no_place_for_is_named_and_the_others_are_answered(ask):
    answers = ask(GREEDY, template="plain", batch_size=3)
    failed = {key: answer.reason for key, answer in answers.items() if isinstance(answer, Failure)}
    assert set(failed) == {3, 5}
    assert re.match(r"Question 5 cannot be asked: .*<image>", failed[5])
    about_images = [question for question in QUESTIONS if question.image]
    assert {key: answers[key] for key in answers.keys() - failed} == ask(GREEDY, about_images, template="plain")


def test_an_image_that_is_no_image_fails_by_itself(ask, image_folder):
    image = (image_folder / "a.png").read_bytes()
    questions = [Question(1, "What?", image), Question(2, "What?", image[:99]), Question(3, "What?", "none.png")]
    answers = ask(GREEDY, questions, batch_size=3)
    assert answers[1] == ask(GREEDY, [Question(1, "What?", "a.png")])[1]
    assert answers[2].reason.startswith("The image of question 2 cannot be decoded")
    assert "none.png does not exist" in answers[3].reason


def test_a_prompt_that_is_too_long_fails_by_itself(ask):
    answers = ask(GREEDY, [Question(1, "word " * 3000), QUESTIONS[2]], batch_size=2)
    assert re.match(r"The prompt has \d+ tokens; the LLM takes fewer than 2048", answers[1].reason)
    assert answers[3] == ask(GREEDY)[3]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_batch_that_memory_does_not_hold_is_split(room, ask, monkeypatch):
    whole = ask(GREEDY)
    generate = inference._generate
    sizes = []

    def run_out_of_memory(model, processor, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > room:
            raise torch.OutOfMemoryError
        return generate(model, processor, prompts, *rest)

    monkeypatch.setattr(inference, "_generate", run_out_of_memory)
    answers = ask(GREEDY, batch_size=5)
    if room == 0:
        assert all(isinstance(answer, Failure) for answer in answers.values())
    else:
        assert answers == whole
    assert sizes[:2] == [5, 2]
    assert max(sizes[2:]) <= 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"num_beams": 0}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        GenerationSettings(**fields)


def test_a_batch_of_nothing_is_refused(ask):
    with pytest.raises(UserError, match="--batch-size"):
        ask(GREEDY, batch_size=0)
