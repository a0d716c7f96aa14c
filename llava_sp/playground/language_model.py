"""Trains the tiny LLaMA on text alone: to answer questions about a written scene, and to describe it.

The text is laid out as LLaVA will lay it out, with a description where the image will stand: a sentence, or a bag of
words for each patch. A bag is a weighted sum of its words' embeddings, as the projector will make one vector of all
that a patch shows; so visual tokens can take the bags' place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.conversation import Rendered, get_template
from llava_sp.playground.language import Question, caption, conversation, notes, patch_words, training_questions
from llava_sp.playground.scenes import Thing, sample_scene

GRID = 12  # patches a side of the vision tower
BAG = 3  # words that describe a patch


@dataclass(frozen=True)
class Phase:
    """A part of the training: short texts about few things are easier to learn from, and quicker.

    Attributes:
        layouts: What follows the descriptions, see `TextWorld`; the batches take turns.
        most_things: Upper bound of the number of things in a scene (2 is the lower); None for scenes as they come.
        grid: Patches a side of descriptions by patch.
        steps: Number of optimizer steps.
        batch_size: Samples a step.
    """

    layouts: tuple[str, ...]
    most_things: int | None
    grid: int
    steps: int
    batch_size: int


@dataclass(frozen=True)
class LanguageModelRecipe:
    """How the LLM is trained."""

    seed: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    phases: tuple[Phase, ...] = (
        Phase(("notes",), 3, 3, 300, 32),
        Phase(("notes", "caption"), None, 3, 700, 32),
        Phase(("conversation", "notes", "caption"), None, 3, 600, 16),
        Phase(("conversation", "conversation", "caption"), None, GRID, 1200, 8),
    )


@dataclass(frozen=True)
class Sample:
    """A text in which every position holds a bag of words; nearly all are bags of one.

    Attributes:
        words: Token ids, [L, BAG].
        weights: Their shares in the position's embedding, [L, BAG]; 0 where there is no word.
        labels: Token ids where the model learns, `IGNORE_INDEX` elsewhere, [L].
    """

    words: NDArray[np.int64]
    weights: NDArray[np.float32]
    labels: NDArray[np.int64]


Bags = tuple[NDArray[np.int64], NDArray[np.float32]]  # words and weights, [N, BAG] each


def llm_config(vocabulary: int) -> LlamaConfig:
    """Returns the LLM's shape: 0.95 M parameters."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=128**-0.5,  # LLaMA's 0.02 suits wide models; here it delays learning by thousands of steps
        bos_token_id=1,
        eos_token_id=2,
    )


@torch.no_grad()
def start_recalling(llm: LlamaForCausalLM) -> None:
    """Makes a new LLM look for the words that it reads and repeat what it finds; learning that takes long.

    Keys equal queries and each output projection undoes its values' (after "Mimetic Initialization of Self-Attention
    Layers", arXiv 2305.09828); the head starts as the embedding.
    """
    llm.lm_head.weight.copy_(llm.model.embed_tokens.weight)
    for layer in llm.model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(0.7 * attention.v_proj.weight.T)


class TextWorld:
    """Writes texts about scenes.

    A description, by sentence or by patch, is followed by a conversation about it in the layout of stage 2, by its
    caption in the layout of stage 1, or by notes: the conversation in few words. A conversation teaches its answers
    alone; notes teach questions too, which tell of the scene as well and are far more to learn from.

    Args:
        tokenizer: The tokenizer from `llava_sp.model.parts.load_tokenizer`.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.vocabulary = tokenizer.get_vocab()

    def sample(self, layout: str, by_patch: bool, phase: Phase, rng: np.random.Generator) -> Sample:
        """Writes one training sample about a random scene."""
        count = int(rng.integers(2, phase.most_things + 1)) if phase.most_things else None
        things = sample_scene(rng, count)
        questions = training_questions(things, rng)
        description = self._faded(things, phase.grid, rng) if by_patch else self.sentence(things)
        if layout == "conversation":
            return self._insert(self._conversation(questions), description)
        answer = caption(things) if layout == "caption" else notes(questions)
        turns = [{"from": "human", "value": IMAGE_TOKEN}, {"from": "gpt", "value": answer}]
        return self._insert(get_template("plain").render(turns, self.tokenizer, self.image_id), description)

    def question(self, question: Question, description: Bags) -> Sample:
        """Writes one question about a described scene, with its answer as labels."""
        return self._insert(self._conversation([question]), description)

    def sentence(self, things: tuple[Thing, ...]) -> Bags:
        """Describes a scene by its caption."""
        return _single(self.tokenizer(caption(things), add_special_tokens=False).input_ids)

    def patches(self, things: tuple[Thing, ...], grid: int) -> Bags:
        """Describes a scene by one bag of words for each patch; a full stop stands for nothing."""
        words, weights = _single([self._word_id(".")] * grid**2)
        for patch, phrase in enumerate(patch_words(things, grid)):
            if phrase:
                words[patch] = [self._word_id(word) for word in phrase]
                weights[patch] = 1.0
        return words, weights

    def _faded(self, things: tuple[Thing, ...], grid: int, rng: np.random.Generator) -> Bags:
        """Describes a scene by patch as a tower might see it: one word more clearly than another."""
        words, weights = self.patches(things, grid)
        weights *= rng.uniform(0.4, 1.6, weights.shape).astype(np.float32)
        if grid > 3:  # more than one patch for a thing: some of them show none of it
            hidden = rng.random(len(words)) < 0.3
            words[hidden], weights[hidden] = _single([self._word_id(".")])
        return words, weights

    def _word_id(self, word: str) -> int:
        """Returns a word's token as it stands in a sentence; a full stop has no space before it."""
        return self.vocabulary[word if word == "." else f"▁{word}"]

    def _conversation(self, questions: list[Question]) -> Rendered:
        return get_template("v1").render(conversation(questions, IMAGE_TOKEN), self.tokenizer, self.image_id)

    def _insert(self, rendered: Rendered, description: Bags) -> Sample:
        """Puts a description where the image's id stands."""
        place = rendered.input_ids.index(self.image_id)
        words, weights = _single(rendered.input_ids)
        silent = np.full(len(description[0]), IGNORE_INDEX)
        return Sample(
            np.concatenate([words[:place], description[0], words[place + 1 :]]),
            np.concatenate([weights[:place], description[1], weights[place + 1 :]]),
            np.concatenate([rendered.labels[:place], silent, rendered.labels[place + 1 :]]),
        )


def _single(ids: list[int]) -> Bags:
    """Makes each token a bag of its own."""
    words = np.zeros((len(ids), BAG), dtype=np.int64)
    words[:, 0] = ids
    weights = np.zeros((len(ids), BAG), dtype=np.float32)
    weights[:, 0] = 1.0
    return words, weights


def embed(llm: LlamaForCausalLM, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Embeds samples, padded on the right; attention is causal, so padding needs no mask.

    Returns:
        Embeddings [B, L, H] and labels [B, L].
    """

    def stack(arrays: list[NDArray[Any]], padding: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.from_numpy(array) for array in arrays], True, padding)

    words = llm.get_input_embeddings()(stack([sample.words for sample in samples], 0))
    weights = stack([sample.weights for sample in samples], 0)
    return (words * weights[..., None]).sum(2), stack([sample.labels for sample in samples], IGNORE_INDEX)


def train_llm(recipe: LanguageModelRecipe, tokenizer: Any) -> LlamaForCausalLM:
    """Trains an LLM from scratch on text.

    Args:
        recipe: How.
        tokenizer: The tokenizer from `llava_sp.model.parts.load_tokenizer`; `<image>` is its last token.

    Returns:
        The LLM in evaluation mode; it has no row for `<image>`.
    """
    torch.manual_seed(recipe.seed)
    world = TextWorld(tokenizer)
    model = LlamaForCausalLM(llm_config(world.image_id))
    start_recalling(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    steps = sum(phase.steps for phase in recipe.phases)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_decay(step / steps))
    rng = np.random.default_rng(recipe.seed)
    with tqdm(total=steps, desc="language model", unit="step") as progress:
        for phase in recipe.phases:
            for step in range(phase.steps):
                layout, by_patch = phase.layouts[step // 2 % len(phase.layouts)], bool(step % 2)
                samples = [world.sample(layout, by_patch, phase, rng) for _ in range(phase.batch_size)]
                with torch.autocast("cpu", torch.bfloat16):
                    embeddings, labels = embed(model, samples)
                    loss = model(inputs_embeds=embeddings, labels=labels).loss
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress.set_postfix_str(f"{layout} {loss.item():.3f}")
                progress.update()
    return model.eval()


def warm_up_then_decay(progress: float) -> float:
    """Returns the share of the peak learning rate: up over 3% of the steps, level, down to 5% over the last 40%."""
    return min(1.0, (progress + 1e-3) / 0.03, 0.05 + 0.95 * (1 - progress) / 0.4)
