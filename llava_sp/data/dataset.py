"""Samples ready for the model: rendered, their images in place, cut to length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.conversation import Rendered, Template
from llava_sp.data.images import image_size, load_image
from llava_sp.data.problems import Problem, SampleError
from llava_sp.data.records import Record, Records
from llava_sp.utils.errors import UserError


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
    ) -> None:
        self.records = records
        self.image_folder = image_folder
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.image_processor = image_processor
        self.template = template
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Returns a sample.

        Returns:
            `input_ids` and `labels`, both [L]; `sample_id`, its name; if it has an image, `pixel_values`, [3, S, S], or
            for AnyRes [views, 3, S, S], and then `image_sizes`, its height and width, [2].

        Raises:
            UserError: It cannot be read; the message names it.
        """
        record = self.records[position]
        try:
            rendered = self.encode(record)
            sample: dict[str, Any] = {
                "input_ids": torch.tensor(rendered.input_ids),
                "labels": torch.tensor(rendered.labels),
                "sample_id": record.id,
            }
            if record.image is not None:
                prepared = self.image_processor(self.open_image(record), return_tensors="pt")
                sample.update({name: values[0] for name, values in prepared.items()})
        except UserError as error:
            where = f"Sample {record.id!r} (record {position + 1} of {self.records.path})"
            # A UserError of one argument crosses from a data loader's worker as what it is; a SampleError would not.
            raise UserError(f"{where}: {error}") from error
        return sample

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

    def open_image(self, record: Record) -> Any:
        """Opens a record's image as PIL's, RGB.

        Raises:
            SampleError: It cannot be read.
            UserError: There is no image folder.
        """
        return load_image(self._folder(), record.image or "")

    def _folder(self) -> str | Path:
        if not self.image_folder:
            raise UserError("It has an image, and no image folder is given (--image_folder).")
        return self.image_folder
