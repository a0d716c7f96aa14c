"""Samples ready for the model: rendered, their images in place, cut to length."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.conversation import Rendered, Template
from llava_sp.data.images import image_size, load_image
from llava_sp.data.problems import Problem, Replaced, SampleError
from llava_sp.data.records import Record, Records
from llava_sp.utils.errors import UserError

REPLACEMENTS = 100
"""Samples that are tried in the place of a bad one. Where so many are bad as well, it is not a matter of samples."""


class ConversationDataset(Dataset):
    """The samples of a data file, each with the ids and labels of its conversation and the pixels of its image.

    Args:
        records: The data file's records.
        image_folder: The folder that their image paths are relative to; none is needed for text alone.
        tokenizer: A fast tokenizer that has `<image>` as a special token.
        image_token_id: The id of `<image>`.
        image_processor: Makes `pixel_values`, and for AnyRes `image_sizes`, of a PIL image:
            `processor(image, return_tensors="pt")`.
        template: The conversation's layout.
        num_image_tokens: Visual tokens of an image, T + N; as many image ids stand for it. For AnyRes a function that
            tells them by the image's height and width.
        max_length: Longest sequence, visual tokens included; what goes beyond is cut off.
        replace_bad: Whether another sample takes the place of one that cannot be read. Which one depends on the place
            alone, and it has an image if and only if the bad one has.
    """

    def __init__(
        self,
        records: Records,
        *,
        image_folder: str | Path | None,
        tokenizer: Any,
        image_token_id: int,
        image_processor: Any,
        template: Template,
        num_image_tokens: int | Callable[[int, int], int],
        max_length: int,
        replace_bad: bool = False,
    ) -> None:
        self.records = records
        self.image_folder = image_folder
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.image_processor = image_processor
        self.template = template
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Returns a sample.

        Returns:
            `input_ids` and `labels`, both [L]; `sample_id`, its name; if it has an image, `pixel_values`, [3, S, S], or
            for AnyRes [views, 3, S, S], and then `image_sizes`, its height and width, [2]; if it stands in for a bad
            one, `replaced`, a list of that and of any that were tried in vain.

        Raises:
            UserError: It cannot be read, nor can what was tried in its place; the message names it.
        """
        bad: list[tuple[int, Problem, str]] = []  # not the errors: they would keep what was decoded in memory
        for candidate in self._candidates(position):
            try:
                sample = self._read(self.records[candidate])
            except SampleError as error:
                bad.append((candidate, error.problem, str(error)))
            except UserError as error:
                raise UserError(f"{self._name(candidate)}: {error}") from error
            else:
                if bad:
                    by = sample["sample_id"]
                    sample["replaced"] = [
                        Replaced(at, self.records[at].id, problem, message, by) for at, problem, message in bad
                    ]
                return sample
        first, last = (f"{self._name(at)}: {message}" for at, _, message in (bad[0], bad[-1]))
        tried = f" Nor can {len(bad) - 1} others be read that were tried in its place; the last: {last}"
        # A UserError of one argument crosses from a data loader's worker as what it is; a SampleError would not.
        raise UserError(first + tried if len(bad) > 1 else first)

    def _candidates(self, position: int) -> Iterator[int]:
        """Yields a position, and then others of its modality to try in its place."""
        yield position
        if self.replace_bad:
            has_image = self.modality_lengths > 0
            others = np.flatnonzero(has_image == has_image[position])
            others = others[others != position]
            random = np.random.default_rng(position)
            yield from random.choice(others, min(REPLACEMENTS, len(others)), replace=False).tolist()

    def _name(self, position: int) -> str:
        return f"Sample {self.records[position].id!r} (record {position + 1} of {self.records.path})"

    def _read(self, record: Record) -> dict[str, Any]:
        rendered = self.encode(record)
        sample: dict[str, Any] = {
            "input_ids": torch.tensor(rendered.input_ids),
            "labels": torch.tensor(rendered.labels),
            "sample_id": record.id,
        }
        return sample if record.image is None else {**sample, **self.prepare_image(record)}

    @property
    def modality_lengths(self) -> np.ndarray:
        """LLaVA's lengths for grouping: words, positive with an image and negative without; [samples].

        The tiles of AnyRes do not count, as in LLaVA: to know them, every image would have to be opened first.
        """
        return self.records.modality_lengths

    def encode(self, record: Record) -> Rendered:
        """Renders a record with every visual token in place, cut to `max_length`.

        The image is not needed, except for AnyRes its file's header, which tells its size.

        Raises:
            SampleError: The turns are wrong, `<image>` does not match the image, the visual tokens leave no room for
                text, or the size that decides on their number cannot be read.
            UserError: There is no image folder to read that from.
        """
        rendered = self.template.render(record.conversations, self.tokenizer, self.image_token_id)
        found, expected = rendered.input_ids.count(self.image_token_id), int(record.image is not None)
        if found != expected:
            image = "an image" if expected else "no image"
            raise SampleError(Problem.IMAGE_COUNT, f"It has {image}, and {IMAGE_TOKEN} in {found} of its turns.")
        if not expected:
            return Rendered(rendered.input_ids[: self.max_length], rendered.labels[: self.max_length])
        at = rendered.input_ids.index(self.image_token_id)
        visual = [self.image_token_id] * self._count_visual_tokens(record, at)
        input_ids = rendered.input_ids[:at] + visual + rendered.input_ids[at + 1 :]
        labels = rendered.labels[:at] + [IGNORE_INDEX] * len(visual) + rendered.labels[at + 1 :]
        return Rendered(input_ids[: self.max_length], labels[: self.max_length])

    def _count_visual_tokens(self, record: Record, at: int) -> int:
        """Returns the number of visual tokens of a record's image, which stands after `at` tokens of text."""
        count, of_size, mend = self.num_image_tokens, "", ""
        if callable(count):
            height, width = image_size(self._folder(), record.image or "")
            count, of_size = count(height, width), f" of an image of {width} x {height} pixels"
            mend = ", or choose fewer tiles (--image_grid_pinpoints)"
        if at + count >= self.max_length:
            raise SampleError(
                Problem.NO_ROOM,
                f"Its {count} visual tokens{of_size}, after {at} of text, leave no room for what follows within "
                f"{self.max_length} tokens; raise --model_max_length{mend}.",
            )
        return count

    def prepare_image(self, record: Record) -> dict[str, torch.Tensor]:
        """Opens a record's image and prepares it for the model.

        Returns:
            `pixel_values`, and for AnyRes `image_sizes`, as `__getitem__` does.

        Raises:
            SampleError: It cannot be read, or its prepared pixels are not finite.
            UserError: There is no image folder.
        """
        image = load_image(self._folder(), record.image or "")
        prepared = {name: values[0] for name, values in self.image_processor(image, return_tensors="pt").items()}
        if not prepared["pixel_values"].isfinite().all():
            raise SampleError(
                Problem.PIXELS_NOT_FINITE,
                f"The image {record.image} has pixels that are not finite once it is prepared; look at image_mean and "
                "image_std of the image processor.",
            )
        return prepared

    def _folder(self) -> str | Path:
        if not self.image_folder:
            raise UserError("It has an image, and no image folder is given (--image_folder).")
        return self.image_folder
