"""Samples ready for the model: rendered, their images in place, cut to length."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.data.conversation import Rendered, Template
from llava_sp.data.images import load_image
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
        image_processor: Makes pixel values of PIL images: `processor(image, return_tensors="pt")["pixel_values"]`.
        template: The conversation's layout.
        num_image_tokens: Visual tokens of one image, T + N; as many image ids stand for it.
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
        num_image_tokens: int,
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
            `input_ids` and `labels`, both [L]; `pixel_values`, [3, S, S], if it has an image; `sample_id`, its name.

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
                image = self.open_image(record)
                sample["pixel_values"] = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        except UserError as error:
            where = f"Sample {record.id!r} (record {position + 1} of {self.records.path})"
            # A UserError of one argument crosses from a data loader's worker as what it is; a SampleError would not.
            raise UserError(f"{where}: {error}") from error
        return sample

    @property
    def modality_lengths(self) -> np.ndarray:
        """LLaVA's lengths for grouping: words, positive with an image and negative without; [samples]."""
        return self.records.modality_lengths

    def encode(self, record: Record) -> Rendered:
        """Renders a record with every visual token in place, cut to `max_length`; the image itself is not needed.

        Raises:
            SampleError: The turns are wrong, `<image>` does not match the image, or the visual tokens do not fit.
        """
        rendered = self.template.render(record.conversations, self.tokenizer, self.image_token_id)
        found, expected = rendered.input_ids.count(self.image_token_id), int(record.image is not None)
        if found != expected:
            image = "an image" if expected else "no image"
            raise SampleError(Problem.IMAGE_COUNT, f"It has {image}, and {IMAGE_TOKEN} in {found} of its turns.")
        if not expected:
            return Rendered(rendered.input_ids[: self.max_length], rendered.labels[: self.max_length])
        at = rendered.input_ids.index(self.image_token_id)
        if at + self.num_image_tokens > self.max_length:
            raise SampleError(
                Problem.NO_ROOM,
                f"Its {self.num_image_tokens} visual tokens, after {at} of text, go beyond the longest sequence of "
                f"{self.max_length} tokens (--model_max_length).",
            )
        visual = [self.image_token_id] * self.num_image_tokens
        input_ids = rendered.input_ids[:at] + visual + rendered.input_ids[at + 1 :]
        labels = rendered.labels[:at] + [IGNORE_INDEX] * len(visual) + rendered.labels[at + 1 :]
        return Rendered(input_ids[: self.max_length], labels[: self.max_length])

    def open_image(self, record: Record) -> Any:
        """Opens a record's image as PIL's, RGB.

        Raises:
            SampleError: It cannot be read.
            UserError: There is no image folder.
        """
        if not self.image_folder:
            raise UserError("It has an image, and no image folder is given (--image_folder).")
        return load_image(self.image_folder, record.image or "")
