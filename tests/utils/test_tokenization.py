"""A fast LLaMA tokenizer gives SentencePiece's own ids for every stretch of text."""

import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_sp.model.parts import load_tokenizer
from llava_sp.utils.files import write_json
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


def test_merges_follow_the_scores_of_the_model(tmp_path: Path) -> None:
    """LLaMA's models have runs of spaces among the first ids, and the lowest score for them."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((TOKENIZER / "tokenizer.model").read_bytes())
    for piece in model.pieces:
        piece.score = -1e9 if set(piece.piece) == {"▁"} else piece.score
    for file in TOKENIZER.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    expected = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(str(tmp_path))
    restore_sentencepiece_prefix(tokenizer)
    texts = ["two  spaces", "def f():\n    return 1", " " * 7 + "x", "a        b", *TEXTS]
    assert expected.encode(texts[0], out_type=str)[-2:] != ["▁▁", "spaces"]
    for text in texts:
        assert tokenizer(text, add_special_tokens=False).input_ids == expected.encode(text), text
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    restore_sentencepiece_prefix(again)
    assert [again.tokenize(text) for text in texts] == [tokenizer.tokenize(text) for text in texts]
