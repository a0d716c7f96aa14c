"""LLaVA-SP in lmms-eval: `python -m lmms_eval --model llava_sp --model_args pretrained=PATH --tasks ...`.

A "simple" model of lmms-eval, as its LLaVA-1.5: the task's text is the question, the image goes first. Tasks that let
the model continue a conversation, or compare the likelihoods of given answers, cannot be run.
"""

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.eval.adapters.common import answers_in_order, load_checkpoint
from llava_sp.eval.inference import GenerationSettings
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError

DEFAULT_STOP = "\n\n"
"""What lmms-eval ends answers with if a task does not say where they end; LLaVA's figures are without it."""

BATCHES_AT_ONCE = 16
"""Batches whose images are held in memory, among which questions of like length are put together."""


class LlavaSP(lmms):
    """A checkpoint that answers lmms-eval's requests.

    Args:
        pretrained: The checkpoint: a folder, or a name on the Hugging Face Hub.
        batch_size: Questions per batch.
        seed: Seed of sampling, for tasks with a temperature.
        **arguments: See `load_checkpoint`.

    Raises:
        UserError: An argument is wrong, or the checkpoint cannot be loaded.
    """

    is_simple = True

    def __init__(self, pretrained: str, batch_size: int | str = 1, seed: int = 0, **arguments: Any) -> None:
        super().__init__()
        if not str(batch_size).isdecimal():
            raise UserError(f"--batch_size must be a whole number for llava_sp, not {batch_size!r}.")
        self.batch_size = int(batch_size)
        self.seed = seed
        self.loaded = load_checkpoint(pretrained, **arguments)

    @property
    def device(self) -> Any:
        """Where lmms-eval puts what ranks tell each other."""
        return self.loaded[0].device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers requests in batches of the same settings; returns the answers in the requests' order.

        Args:
            requests: Their `args` are text, settings, function from a record to its images, record's number, task and
                split.

        Raises:
            UserError: A request has several images, or something else than an image.
        """
        answers = [""] * len(requests)
        groups: dict[GenerationSettings, list[tuple[int, str]]] = {}
        asked: Counter[str] = Counter()
        for number, request in enumerate(requests):
            _, wanted, _, record, task, split = request.args
            name = f"{task}/{split}/{record}"
            # A record that is asked several times is to get several samples.
            groups.setdefault(settings_of(wanted, self.seed), []).append((number, f"{name}/{asked[name]}"))
            asked[name] += 1

        at_once = BATCHES_AT_ONCE * self.batch_size
        with tqdm(total=len(requests), unit="question", disable=self.rank != 0) as progress:
            for settings, group in groups.items():
                for start in range(0, len(group), at_once):
                    part = group[start : start + at_once]
                    questions = [self._question(name, requests[number].args) for number, name in part]
                    texts = answers_in_order(self.loaded, questions, settings, batch_size=self.batch_size)
                    for (number, _), text in zip(part, texts, strict=True):
                        answers[number] = cut(text, requests[number].args[1].get("until"))
                    progress.update(len(part))
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported: it raises `NotImplementedError`."""
        raise NotImplementedError(
            "llava_sp does not rate given answers by their likelihood; take the task's version that generates answers."
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported: it raises `NotImplementedError`."""
        raise NotImplementedError("llava_sp answers one question at a time; it cannot run tasks of several rounds.")

    def _question(self, name: str, args: tuple[Any, ...]) -> Question:
        text, _, images_of, record, task, split = args
        images = images_of(self.task_dict[task][split][record]) or []
        if len(images) > 1:
            raise UserError(f"{name}: it has {len(images)} images; LLaVA-SP takes one image a question.")
        if images and not isinstance(images[0], Image.Image):
            kind = type(images[0]).__name__
            raise UserError(f"{name}: it asks about a {kind}, not an image; LLaVA-SP knows neither video nor sound.")
        text = text.replace(f"{IMAGE_TOKEN}\n", "").replace(IMAGE_TOKEN, "")
        return Question(name, text, encoded(images[0]) if images else None)


def settings_of(wanted: Mapping[str, Any], seed: int) -> GenerationSettings:
    """Returns the settings that a task asks for, with lmms-eval's defaults; the temperature decides about sampling."""
    temperature = wanted.get("temperature") or 0
    return GenerationSettings(
        temperature=temperature,
        top_p=wanted.get("top_p") if temperature > 0 else None,
        num_beams=wanted.get("num_beams") or 1,
        max_new_tokens=wanted.get("max_new_tokens") or 1024,
        seed=seed,
    )


def cut(text: str, until: str | list[str] | None) -> str:
    """Ends an answer where the first of the task's stops begins."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop and stop != DEFAULT_STOP:
            text = text.split(stop)[0]
    return text.strip()


def encoded(image: Image.Image) -> bytes:
    """Returns an image as the bytes of a file, without loss, and uncompressed, which is fast."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PPM")
    return buffer.getvalue()
