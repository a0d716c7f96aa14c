"""A tokenizer and recorded conversations for the data tests."""

import json
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.utils.tokenization import restore_sentencepiece_prefix
from tests.tiny import FIXTURES, TOKENIZER

GOLDEN = json.loads((FIXTURES / "golden_tokens.json").read_text())
"""LLaVA's ids and labels by `TEMPLATE/CASE`; -200 marks the image."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    restore_sentencepiece_prefix(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def image_token_id(tokenizer: Any) -> int:
    return tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
