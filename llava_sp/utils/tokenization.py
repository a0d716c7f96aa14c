"""Tokenizers that split text as the models they belong to have learned it."""

import json
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers


def restore_sentencepiece_prefix(tokenizer: Any) -> None:
    """Makes a LLaMA tokenizer put a space before every stretch of text between special tokens, as SentencePiece does.

    LLaVA tokenises that way (`legacy=True`). The fast tokenizers of transformers 5 leave the prefix out where the text
    begins with a space, and once saved and loaded again, after every special token. The tokenizer is changed in place;
    one of another kind is left as it is.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    prefix = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(prefix, pre_tokenizers.Metaspace) and prefix.prepend_scheme != "never":
        _prepend_space(tokenizer.backend_tokenizer)


def follow_sentencepiece(tokenizer: Any, model_file: str) -> None:
    """Makes a tokenizer that transformers built from a SentencePiece model split text as that model does.

    transformers 5 merges pieces in the order of their ids, SentencePiece in that of their scores. LLaMA's and Mistral's
    models give runs of spaces the lowest score: two spaces and a word are `▁` and `▁word`, not `▁▁` and `word`. The
    tokenizer is changed in place; one that is no BPE is left as it is.

    Args:
        tokenizer: A fast tokenizer of transformers.
        model_file: Its `tokenizer.model`.
    """
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.BPE):
        return
    pieces = SentencePieceProcessor(model_file=model_file)
    fields = json.loads(backend.to_str())["model"]
    order = sorted(fields["merges"], key=lambda pair: -pieces.get_score(pieces.piece_to_id("".join(pair))))
    kept = ("vocab", "unk_token", "fuse_unk", "byte_fallback")
    backend.model = models.BPE(merges=[tuple(pair) for pair in order], **{name: fields[name] for name in kept})
    if pieces.encode("a", out_type=str)[0].startswith("▁"):
        _prepend_space(backend)


def _prepend_space(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
