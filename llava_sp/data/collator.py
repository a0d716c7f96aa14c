"""Batches of samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava_sp.constants import IGNORE_INDEX


@dataclass(frozen=True)
class Collator:
    """Joins samples to a batch, padded on the right.

    Attributes:
        pad_token_id: The id that fills `input_ids` up; where it is, `attention_mask` is 0.
    """

    pad_token_id: int

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Joins B samples.

        Returns:
            `input_ids`, `labels` and `attention_mask`, [B, L]; `sample_ids`, B names; if there is any image,
            `pixel_values`, [images, 3, S, S] in the samples' order, or for AnyRes [images, most views, 3, S, S], where
            zeros fill up the views of the others, and then `image_sizes`, [images, 2]; if any sample stands in for
            others, `replaced`, a list of those.
        """
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        batch = {
            "input_ids": _pad(samples, "input_ids", self.pad_token_id),
            "labels": _pad(samples, "labels", IGNORE_INDEX),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "sample_ids": [sample["sample_id"] for sample in samples],
        }
        for name in ("pixel_values", "image_sizes"):
            if values := [sample[name] for sample in samples if name in sample]:
                batch[name] = pad_sequence(values, batch_first=True)
        if replaced := [bad for sample in samples for bad in sample.get("replaced", ())]:
            batch["replaced"] = replaced
        return batch


def _pad(samples: list[dict[str, Any]], name: str, value: int) -> torch.Tensor:
    return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
