"""Do source and result of a conversion compute the same? Their logits on random prompts and images, side by side.

Models are loaded one after the other, so there is never more than one in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava_sp.convert import reference
from llava_sp.convert.source import Source, read_source
from llava_sp.model import loading
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.trust import check_folder, read_config
from llava_sp.utils.errors import UserError

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative error of the logits by the type that the result is written in: room for its rounding, no more."""


@dataclass(frozen=True)
class Prompt:
    """A random prompt.

    Args:
        before: Ids before the image [L1].
        after: Ids after it [L2].
        views: The preprocessed image [1, 3, S, S], or for AnyRes its views [views, 3, S, S]; None for text alone.
        size: For AnyRes the image's height and width in pixels.
    """

    before: torch.Tensor
    after: torch.Tensor
    views: torch.Tensor | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Agreement:
    """How far a result's logits are from the source's.

    Args:
        errors: Relative error ||result - source|| / ||source|| of each prompt, at the positions of its text.
        tolerance: Largest error that is accepted.
    """

    errors: list[float]
    tolerance: float

    def __str__(self) -> str:
        """Returns one line for a report."""
        return (
            f"largest relative error {max(self.errors):.1e} on {len(self.errors)} prompts; {self.tolerance:.0e} allowed"
        )


Logits = Callable[[list[Prompt]], list[torch.Tensor]]


def verify_import(
    source: Source, tower_home: str, folder: Path, dtype: torch.dtype, *, without_spatial: bool
) -> Agreement:
    """Compares an imported checkpoint with what it was imported from.

    Args:
        source: The source.
        tower_home: Where its tower's configuration lies.
        folder: The result.
        dtype: Type of the result.
        without_spatial: Compare the result less its spatial tokens, which a warm start has just initialised.
    """

    def expected(prompts: list[Prompt]) -> list[torch.Tensor]:
        if source.kind == "llava-hf":
            check_folder(source.home)
            config = read_config(source.home)
            return run(LlavaForConditionalGeneration.from_pretrained(source.home, config=config).eval(), prompts)
        return run_official(source, tower_home, prompts)

    def found(prompts: list[Prompt]) -> list[torch.Tensor]:
        if not without_spatial:
            return run(loading.load(folder)[0], prompts)
        fields = {"sfe_maps": "none", "sfe_sides": [], "dfi_kernels": []}
        config = LlavaSPConfig.from_dict({**LlavaSPConfig.from_pretrained(folder).to_dict(), **fields})
        return run(LlavaSPForCausalLM.from_pretrained(folder, config=config).eval(), prompts)

    return compare(expected, found, LlavaSPConfig.from_pretrained(folder), dtype)


def verify_copy(path: str, base: str | None, folder: Path, dtype: torch.dtype, *, allow_other_base: bool) -> Agreement:
    """Compares a checkpoint of ours with another form of it; an adapter runs unmerged."""
    return compare(
        lambda prompts: run(_unmerged(path, base, allow_other_base), prompts),
        lambda prompts: run(loading.load(folder)[0], prompts),
        LlavaSPConfig.from_pretrained(folder),
        dtype,
    )


def verify_export(
    path: str, base: str | None, folder: Path, tower_home: str, dtype: torch.dtype, *, allow_other_base: bool
) -> Agreement:
    """Compares a checkpoint of ours with its official form, evaluated as an official checkpoint."""
    return compare(
        lambda prompts: run(_unmerged(path, base, allow_other_base), prompts),
        lambda prompts: run_official(read_source(str(folder)), tower_home, prompts),
        LlavaSPConfig.from_pretrained(path),
        dtype,
    )


def _unmerged(path: str, base: str | None, allow_other_base: bool) -> Any:
    return loading.load(path, base=base, merge=False, allow_other_base=allow_other_base)[0]


@torch.no_grad()
def compare(expected: Logits, found: Logits, config: LlavaSPConfig, dtype: torch.dtype) -> Agreement:
    """Runs both sides on the same random prompts: an image between words, an image first, text alone.

    Raises:
        UserError: They differ by more than rounding does.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(config.llm_vocab_size or config.text_config.vocab_size, config.image_token_id)
    side, tiles = config.vision_config.image_size, config.tile_layout

    def prompt(before: int, after: int, image: bool) -> Prompt:
        ids = torch.randint(vocabulary, (before + after,), generator=generator)
        if not image:
            return Prompt(ids[:before], ids[before:])
        size = (side, 3 * side // 2) if tiles else None
        count = tiles.count_views(*size) if tiles and size else 1
        return Prompt(ids[:before], ids[before:], torch.randn(count, 3, side, side, generator=generator), size)

    prompts = [prompt(8, 8, True), prompt(1, 16, True), prompt(16, 0, False)]
    pairs = zip(expected(prompts), found(prompts), strict=True)
    errors = [
        ((ours - theirs).norm() / theirs.norm()).item()
        for theirs, ours in ((a[:, :vocabulary].float(), b[:, :vocabulary].float()) for a, b in pairs)
    ]
    agreement = Agreement(errors, TOLERANCE[dtype])
    if not max(errors) <= agreement.tolerance:  # not a number is no agreement either
        raise UserError(f"The result does not compute what its source does: {agreement}. It was not kept.")
    return agreement


def run(model: Any, prompts: list[Prompt]) -> list[torch.Tensor]:
    """Returns the logits [L1 + L2, V] of LLaVA in transformers, or of ours, at the positions of the text."""
    config = model.config
    results = []
    for prompt in prompts:
        count, image = 0, {}
        if prompt.views is not None:
            count, image = config.image_seq_length, {"pixel_values": prompt.views.to(model.dtype)}
        if prompt.views is not None and prompt.size is not None:
            count = config.tile_layout.count_tokens(*prompt.size)
            image = {"pixel_values": image["pixel_values"][None], "image_sizes": torch.tensor([prompt.size])}
        ids = torch.cat([prompt.before, torch.full((count,), config.image_token_id), prompt.after])
        results.append(_of_text(model(input_ids=ids[None], **image).logits[0], prompt))
    return results


def run_official(source: Source, tower_home: str, prompts: list[Prompt]) -> list[torch.Tensor]:
    """Returns the logits [L1 + L2, V] of an official checkpoint at the positions of the text."""
    visual = {
        index: reference.visual_tokens(source, tower_home, prompt.views, prompt.size)
        for index, prompt in enumerate(prompts)
        if prompt.views is not None
    }
    llm: Any = reference.load_llm(source)
    embed = llm.get_input_embeddings()
    results = []
    for index, prompt in enumerate(prompts):
        before, after = embed(prompt.before), embed(prompt.after)
        image = visual.get(index, before[:0]).to(before.dtype)
        logits = llm(inputs_embeds=torch.cat([before, image, after])[None]).logits[0]
        results.append(_of_text(logits, prompt))
    return results


def _of_text(logits: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    end = len(logits) - len(prompt.after)
    return torch.cat([logits[: len(prompt.before)], logits[end:]])
