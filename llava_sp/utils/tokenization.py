"""Tokenizers that split text as the models they belong to have learned it."""

from typing import Any

from tokenizers import normalizers, pre_tokenizers


def restore_sentencepiece_prefix(tokenizer: Any) -> None:
    """Makes a LLaMA tokenizer put a space before every stretch of text between special tokens, as SentencePiece does.

    LLaVA tokenises that way (`legacy=True`). The fast tokenizers of transformers 5 leave the prefix out where the text
    begins with a space, and once saved and loaded again, after every special token. The tokenizer is changed in place;
    one of another kind is left as it is.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    backend = tokenizer.backend_tokenizer
    prefix = backend.pre_tokenizer
    if isinstance(prefix, pre_tokenizers.Metaspace) and prefix.prepend_scheme != "never":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
