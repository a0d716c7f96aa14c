"""A fast LLaMA tokenizer gives SentencePiece's own ids for every stretch of text."""

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_sp.utils.tokenization import restore_sentencepiece_prefix
from tests.tiny import TOKENIZER

TEXTS = ["x", " x", "  two spaces", "\nline", " ", "café 你 ▁", " ASSISTANT: yes"]


@pytest.mark.parametrize("reloaded", [False, True], ids=["fresh", "saved and loaded"])
def test_ids_equal_sentencepieces(reloaded: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    if reloaded:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    restore_sentencepiece_prefix(tokenizer)
    model = SentencePieceProcessor(model_file=str(TOKENIZER / "tokenizer.model"))
    for text in TEXTS:
        expected = model.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        after_end = tokenizer(f"</s>{text}", add_special_tokens=False).input_ids
        assert after_end == [tokenizer.eos_token_id, *expected]


def test_a_tokenizer_of_another_kind_is_left_alone() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    restore_sentencepiece_prefix(tokenizer)
    assert isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.Whitespace)
    assert tokenizer.backend_tokenizer.normalizer is None
