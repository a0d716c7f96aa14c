"""How the base models are trained: what they are shown, and that a few steps make models of the right kind."""

import numpy as np
import pytest
import torch

from llava_sp.constants import IGNORE_INDEX
from llava_sp.model.parts import load_tokenizer
from llava_sp.playground import BASE
from llava_sp.playground.base_models import LLM
from llava_sp.playground.language import held_out_questions
from llava_sp.playground.language_model import BAG, LanguageModelRecipe, Phase, TextWorld, embed, llm_config, train_llm
from llava_sp.playground.scenes import TRAIN, generator, sample_scene
from llava_sp.playground.tokenizer import VOCABULARY, train_tokenizer
from llava_sp.playground.tower import (
    NOTHING,
    PHRASES,
    TowerRecipe,
    covered_patches,
    labelled_board,
    train_tower,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(BASE / LLM))


TINY = LanguageModelRecipe(phases=(Phase(("notes", "caption"), 3, 3, 6, 2), Phase(("conversation",), 2, 6, 2, 2)))


@pytest.fixture(scope="module")
def tiny_llm(tokenizer):
    return train_llm(TINY, tokenizer)


@pytest.mark.parametrize("layout", ["conversation", "caption", "notes"])
@pytest.mark.parametrize("by_patch", [False, True])
def test_samples(tokenizer, layout, by_patch):
    sample = TextWorld(tokenizer).sample(layout, by_patch, Phase((layout,), None, 6, 1, 1), generator(0, TRAIN, 0))
    learned = sample.labels != IGNORE_INDEX
    assert np.array_equal(sample.labels[learned], sample.words[learned, 0])
    assert (sample.weights > 0).sum(1).max() == (BAG if by_patch else 1)
    if layout == "conversation":
        assert tokenizer.decode(sample.labels[learned]).count("</s>") == 10
        assert "USER" not in tokenizer.decode(sample.labels[learned])
    else:
        first = int(learned.argmax())
        assert learned[first:].all()
        assert not by_patch or first == 1 + 6 * 6  # <s> and the patches


def test_a_question_learns_its_answer_alone(tokenizer):
    world = TextWorld(tokenizer)
    rng = generator(0, TRAIN, 1)
    things = sample_scene(rng)
    question = held_out_questions(things, rng, present=True)[0]
    sample = world.question(question, world.sentence(things))
    learned = sample.labels[sample.labels != IGNORE_INDEX]
    assert tokenizer.decode(learned).replace("</s>", "").strip() == question.answer
    text = tokenizer.decode(sample.words[:, 0])
    assert "USER: " in text and question.text in text and things[0].place in text


def test_bags_are_weighted_sums_of_embeddings(tokenizer, tiny_llm):
    world = TextWorld(tokenizer)
    phase = Phase(("caption",), 3, 3, 1, 1)
    samples = [world.sample("caption", by_patch, phase, generator(0, TRAIN, 2)) for by_patch in (True, False)]
    embeddings, labels = embed(tiny_llm, samples)
    length = max(len(sample.labels) for sample in samples)
    assert embeddings.shape == (2, length, 128)
    assert labels.shape == (2, length)
    place = int((samples[0].weights > 0).sum(1).argmax())
    table = tiny_llm.get_input_embeddings().weight
    expected = torch.from_numpy(samples[0].weights[place]) @ table[samples[0].words[place]]
    assert torch.allclose(embeddings[0, place], expected, atol=1e-6)


def test_a_few_steps_make_an_llm_and_repeat_exactly(tokenizer, tiny_llm):
    assert tiny_llm.config.vocab_size == VOCABULARY
    again = train_llm(TINY, tokenizer)
    for ours, theirs in zip(tiny_llm.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_few_steps_make_a_tower():
    tower = train_tower(TowerRecipe(steps=2, batch_size=2), TRAIN)
    states = tower(torch.zeros(1, 3, 72, 72), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(1, 145, 128)] * 5
    assert sum(parameter.numel() for parameter in tower.parameters()) < 0.6e6


def test_patches_are_labelled_with_what_covers_them():
    covered = covered_patches((4, 0, 18, 8))
    assert covered.sum() == 2
    assert covered[0, 1] and covered[0, 2]
    pixels, labels = labelled_board(TRAIN, np.random.default_rng(0), warp=1.0)
    assert pixels.shape == (3, 72, 72)
    assert labels.shape == (144,)
    kinds = set(labels.tolist())
    assert NOTHING in kinds and IGNORE_INDEX in kinds
    assert kinds - {NOTHING, IGNORE_INDEX} <= set(range(len(PHRASES)))


def test_tokenizer_is_trained_from_the_world(tmp_path, tokenizer):
    assert train_tokenizer(tmp_path, seed=0) == VOCABULARY
    llm_config(VOCABULARY).save_pretrained(tmp_path)
    trained = load_tokenizer(str(tmp_path))
    text = "Where is the seven? ASSISTANT: north\nÄ"
    assert trained.tokenize(text) == tokenizer.tokenize(text)
    assert trained.decode(trained(text).input_ids, skip_special_tokens=True) == text
    assert trained.tokenize("seven northwest") == ["▁seven", "▁northwest"]  # a word of the world is one token
