"""A tokenizer, recorded conversations, and small datasets for the data tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.data.conversation import get_template
from llava_sp.data.dataset import ConversationDataset
from llava_sp.data.records import open_records
from llava_sp.utils.tokenization import restore_sentencepiece_prefix
from tests.families import TOKENIZERS
from tests.tiny import FIXTURES, TOKENIZER

GOLDEN = json.loads((FIXTURES / "golden_tokens.json").read_text())
"""LLaVA's ids and labels by `TEMPLATE/CASE`; -200 marks the image."""


VISUAL = 10
"""Visual tokens of an image in these tests."""


class Pixels:
    """An image processor that only resizes: [3, 4, 4] of 0..255."""

    def __call__(self, image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        small = np.array(image.resize((4, 4)), dtype=np.float32)
        return {"pixel_values": torch.from_numpy(small).permute(2, 0, 1)[None]}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    restore_sentencepiece_prefix(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def image_token_id(tokenizer: Any) -> int:
    return tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    """A tokenizer of each kind with `<image>`, as saved and loaded again."""
    found = {}
    for kind, make in TOKENIZERS.items():
        tokenizer = make()
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
        folder = tmp_path_factory.mktemp(kind)
        tokenizer.save_pretrained(folder)
        found[kind] = AutoTokenizer.from_pretrained(folder)
    return found


@pytest.fixture
def dataset(tmp_path: Path, tokenizer: Any, image_token_id: int) -> Callable[..., ConversationDataset]:
    """Makes a dataset of some records; `red.png` is there."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "red.png")

    def make(*records: dict[str, Any], **options: Any) -> ConversationDataset:
        (tmp_path / "data.json").write_text(json.dumps(records))
        settings: dict[str, Any] = {"template": get_template("v1"), "max_length": 2048, **options}
        return ConversationDataset(
            open_records(tmp_path / "data.json"),
            image_folder=settings.pop("image_folder", tmp_path / "images"),
            tokenizer=tokenizer,
            image_token_id=image_token_id,
            image_processor=Pixels(),
            num_image_tokens=settings.pop("num_image_tokens", VISUAL),
            **settings,
        )

    return make
