"""Batched generation: the same answers as one by one.

Questions of like length are batched and padded on the left. Each question draws from its own random numbers, so that
also a sampled answer depends neither on its batch nor on the questions before it. What remains is rounding: in 16-bit
types a batch's size can turn a choice between two tokens of nearly the same score.

Shapes: B batch, L sequence, V rows of the vocabulary.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llava_sp.data.conversation import Template
from llava_sp.eval.batches import Asked, Pixels, batch_inputs, load_pixels, prompt_ids
from llava_sp.eval.questions import Question
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; the defaults are those of LLaVA's `model_vqa`.

    Attributes:
        temperature: Divides the scores before sampling; 0 takes the best token at each step (greedy).
        top_p: Samples from the likeliest tokens that together have this probability; `None` from all.
        num_beams: Beams of a beam search; 1 for none. A beam search that samples depends on the batches.
        max_new_tokens: Longest answer in tokens.
        seed: Seed of sampling.

    Raises:
        UserError: A value is out of its range.
    """

    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"--temperature must be 0 (greedy) or more, not {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be above 0 and at most 1, not {self.top_p}.")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Failure:
    """Stands for the answer to a question that cannot be answered, and says why."""

    reason: str


class SeededNoise(LogitsProcessor):
    """Makes the greatest score a sample from the scores' softmax, by adding Gumbel noise to them.

    Each row has its own generator. Sampling with PyTorch's global one would give an answer that depends on the batch.

    Args:
        seeds: One for each row of the batch.
        device: Where the scores are.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Maps scores [B, V] to noisy scores [B, V]."""
        # In float32 one exponential in 2^24 is zero, and its token would win whatever its score.
        exponential = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(exponential, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - exponential.log()


def generate_answers(
    model: LlavaSPForCausalLM,
    processor: LlavaSPProcessor,
    questions: Sequence[Question],
    *,
    image_folder: str | Path,
    template: Template,
    settings: GenerationSettings,
    batch_size: int = 1,
) -> Iterator[tuple[Question, str | Failure]]:
    """Answers questions in batches. One that cannot be answered does not keep the others from it.

    Args:
        model: The model in evaluation mode.
        processor: Its processor.
        questions: What to answer, in any order.
        image_folder: The folder that the questions' image paths are relative to.
        template: The conversation to ask in, usually the one that the model was tuned with.
        settings: How to generate.
        batch_size: Questions per batch; fewer once the GPU's memory did not hold so many.

    Yields:
        Each question with its answer, as it is ready: the longest questions come first. A `Failure` stands for the
        answer if the image cannot be decoded, the conversation has no place for the question, or it alone is too long
        or too large.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    ordered = by_length(questions)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]

    def load_images(batch: list[Question]) -> list[Pixels | Failure]:
        loaded: dict[str | bytes | None, Pixels | Failure] = {}
        for question in batch:
            if question.image not in loaded:
                try:
                    loaded[question.image] = load_pixels(question, image_folder, processor)
                except UserError as error:
                    loaded[question.image] = Failure(str(error))
        return [loaded[question.image] for question in batch]

    def answer(asked: Sequence[Asked]) -> list[str] | None:
        try:
            return _generate(model, processor, asked, template, settings)
        except torch.OutOfMemoryError:
            return None

    for batch, images in zip(batches, _one_ahead(load_images, batches), strict=True):
        waiting: list[Asked] = []
        for question, pixels in zip(batch, images, strict=True):
            if isinstance(pixels, Failure):
                yield question, pixels
                continue
            prompt = _prompt_or_failure(question, model, processor, template, pixels)
            if isinstance(prompt, Failure):
                yield question, prompt
            else:
                waiting.append((question, prompt, pixels))
        while waiting:
            asked = waiting[:batch_size]
            answers = answer(asked)
            if answers is not None:
                yield from zip((question for question, _, _ in asked), answers, strict=True)
                del waiting[: len(asked)]
            elif len(asked) > 1:
                batch_size = len(asked) // 2
                logger.warning("The GPU's memory does not hold %d questions; going on with %d.", len(asked), batch_size)
            else:
                yield asked[0][0], Failure("The GPU's memory does not hold this question.")
                del waiting[0]


def by_length(questions: Iterable[Question]) -> list[Question]:
    """Orders questions so that those about one image stand together, and like beside like, which costs little padding.

    The longest come first: what does not fit into memory shows at once.
    """
    groups: dict[str | bytes | None, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    for group in groups.values():
        group.sort(key=lambda question: len(question.text), reverse=True)
    ordered = sorted(groups.values(), key=lambda group: (group[0].image is not None, len(group[0].text)), reverse=True)
    return [question for group in ordered for question in group]


def share_of(questions: Iterable[Question], rank: int, ranks: int) -> list[Question]:
    """Returns a rank's share of questions; the shares take equally long, and an image's questions stay together."""
    images: dict[object, int] = {}
    share = []
    for question in by_length(questions):
        key = question.key if question.image is None else question.image
        if images.setdefault(key, len(images)) % ranks == rank:
            share.append(question)
    return share


def _prompt_or_failure(
    question: Question, model: LlavaSPForCausalLM, processor: LlavaSPProcessor, template: Template, pixels: Pixels
) -> list[int] | Failure:
    size = tuple(pixels["image_sizes"][0].tolist()) if "image_sizes" in pixels else None
    try:
        prompt = prompt_ids(question, processor, template, size)
    except UserError as error:
        return Failure(str(error))
    longest = model.config.text_config.max_position_embeddings
    if len(prompt) >= longest:
        return Failure(f"The prompt has {len(prompt)} tokens; the LLM takes fewer than {longest}.")
    return prompt


def _generate(
    model: LlavaSPForCausalLM,
    processor: LlavaSPProcessor,
    asked: Sequence[Asked],
    template: Template,
    settings: GenerationSettings,
) -> list[str]:
    """Continues the prompts of a batch; returns the texts."""
    tokenizer = processor.tokenizer
    seeds = [_seed(settings.seed, question) for question, _, _ in asked]
    inputs = batch_inputs(model, processor, asked, share=settings.num_beams == 1)
    length = inputs["input_ids"].shape[1]

    # A beam search can only sample from PyTorch's global generator.
    beam_sampling = settings.temperature > 0 and settings.num_beams > 1
    with torch.random.fork_rng(enabled=beam_sampling):
        if beam_sampling:
            torch.manual_seed(seeds[0])
        output = model.generate(
            **inputs,
            generation_config=_generation_config(model, tokenizer, template, settings, beam_sampling),
            logits_processor=None if beam_sampling else _sampler(settings, seeds, model.device),
            tokenizer=tokenizer,  # for stop_strings
        )
    texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return [text.split(template.stop)[0].strip() for text in texts]


def _sampler(settings: GenerationSettings, seeds: list[int], device: torch.device) -> LogitsProcessorList:
    """Returns what makes the greatest score a sample; nothing for greedy decoding."""
    if settings.temperature == 0:
        return LogitsProcessorList()
    top_p = [] if settings.top_p is None else [TopPLogitsWarper(settings.top_p)]
    return LogitsProcessorList([TemperatureLogitsWarper(settings.temperature), *top_p, SeededNoise(seeds, device)])


def _generation_config(
    model: LlavaSPForCausalLM, tokenizer: Any, template: Template, settings: GenerationSettings, beam_sampling: bool
) -> GenerationConfig:
    ends = model.generation_config.eos_token_id
    end = template.end_token_id(tokenizer)
    ends = [end, *(ends if isinstance(ends, list) else [ends])]
    # transformers would keep the 50 likeliest tokens only, unless told otherwise.
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if beam_sampling else {}
    return GenerationConfig(
        do_sample=beam_sampling,
        **sampling,
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None}),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=None if end is not None else [template.stop],
        use_cache=True,
    )


def _seed(seed: int, question: Question) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {question.id!r}".encode()).digest()[:7])


def _one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps items in order; the next result is computed in a thread while the caller works with the last."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for item in items:
            pending.append(worker.submit(function, item))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
