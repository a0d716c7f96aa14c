"""Batches of questions as the model takes them: prompts, images, padding, and what several questions share.

Shapes: B batch, L sequence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.data.conversation import Template
from llava_sp.eval.questions import Question, open_image
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.errors import UserError

Pixels = dict[str, torch.Tensor]
"""What the image processor makes of images; nothing without an image."""

Asked = tuple[Question, list[int], Pixels]
"""A question, its prompt, and its image."""


def load_pixels(question: Question, image_folder: str | Path, processor: LlavaSPProcessor) -> Pixels:
    """Returns what the image processor makes of a question's image, as a batch of one.

    Raises:
        SampleError: The image cannot be read.
    """
    image = open_image(question, image_folder)
    return {} if image is None else dict(processor.image_processor(image, return_tensors="pt"))


def prompt_ids(
    question: Question, processor: LlavaSPProcessor, template: Template, image_size: tuple[int, ...] | None = None
) -> list[int]:
    """Renders a question up to where the answer begins; the image goes first, as LLaVA has it.

    Args:
        question: The question.
        processor: The model's processor.
        template: The conversation to ask in.
        image_size: For AnyRes: the image's height and width in pixels.

    Raises:
        UserError: The question holds `<image>` and has none, or the conversation has no place for it.
    """
    try:
        written = IMAGE_TOKEN in question.text
        if written and question.image is None:
            raise UserError(f"it holds {IMAGE_TOKEN} and comes without an image.")
        ids = template.render_prompt(
            as_turns(question), processor.tokenizer, processor.image_token_id, as_written=not written
        )
    except UserError as error:
        raise UserError(f"Question {question.id!r} cannot be asked: {error}") from error
    count = processor.num_image_tokens if image_size is None else processor.num_image_tokens_of(*image_size)
    repeats = {processor.image_token_id: count}
    return [copy for token in ids for copy in [token] * repeats.get(token, 1)]


def as_turns(question: Question) -> list[dict[str, str]]:
    """Returns a question as a conversation that awaits its first answer."""
    text = question.text if question.image is None else f"{IMAGE_TOKEN}\n{question.text}"
    return [{"from": "human", "value": text}]


def batch_inputs(
    model: LlavaSPForCausalLM, processor: LlavaSPProcessor, asked: Sequence[Asked], *, share: bool
) -> dict[str, Any]:
    """Returns what `generate` takes of B questions: ids and mask [B, L], and their images.

    If several questions are about one image, the part of the prompt that they share, up to the image's end, is computed
    once, and its keys and values stand in for the images.
    """
    pad = processor.tokenizer.pad_token_id
    images = {question.image: (prompt, pixels) for question, prompt, pixels in asked}
    rows = {image: row for row, image in enumerate(images)}
    heads, tails = zip(*(_split(prompt, processor.image_token_id) for _, prompt, _ in asked), strict=True)
    if not share or len(images) == len(asked) or not all(heads) or not all(tails):
        ids, mask = _pad_left([prompt for _, prompt, _ in asked], pad, model.device)
        return {"input_ids": ids, "attention_mask": mask, **_join([pixels for _, _, pixels in asked if pixels], model)}

    alone = [_split(prompt, processor.image_token_id)[0] for prompt, _ in images.values()]
    ids, mask = _pad_left(alone, pad, model.device)
    with torch.no_grad():
        cache = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **_join([pixels for _, pixels in images.values()], model),
        ).past_key_values
    chosen = torch.tensor([rows[question.image] for question, _, _ in asked])
    cache.batch_select_indices(chosen)
    tail_ids, tail_mask = _pad_left(tails, pad, model.device)
    return {
        "input_ids": torch.cat([ids[chosen], tail_ids], dim=1),
        "attention_mask": torch.cat([mask[chosen], tail_mask], dim=1),
        "past_key_values": cache,
    }


def _join(images: list[Pixels], model: LlavaSPForCausalLM) -> Pixels:
    """Joins single images to a batch; where AnyRes sees one in fewer views than another, zeros fill up."""
    names = images[0] if images else ()
    joined = {name: pad_sequence([image[name][0] for image in images], batch_first=True) for name in names}
    return {
        name: values.to(model.device, model.dtype if values.is_floating_point() else None)
        for name, values in joined.items()
    }


def _split(prompt: list[int], image_token_id: int) -> tuple[list[int], list[int]]:
    """Splits a prompt behind its image; the first part is empty if there is none."""
    end = len(prompt) - prompt[::-1].index(image_token_id) if image_token_id in prompt else 0
    return prompt[:end], prompt[end:]


def _pad_left(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns prompts as ids and mask, both [B, L]."""
    length = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
