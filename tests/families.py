"""Tiny random members of other families: LLMs, each with a tokenizer of its family's kind, and SigLIP towers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tests.tiny import TOKENIZER, VOCABULARY

SENTENCES = [
    "A chat between a curious user and an assistant. The assistant gives helpful answers to the user's questions.",
    "What is in the image? There are three red squares and a blue circle above the green triangle.",
    "Describe it.\n\nHow many digits are there?\n  1. One.\n  2. Two.\nIt's 12345 cats; they're café noir, 你好.",
    "USER: ASSISTANT: ### Human: [INST] [/INST] system user assistant",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 (three digits) and Qwen (one digit) cut text before the byte-level BPE."""

LLAMA_3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_SPARE_ROWS = 40
"""Rows of the embedding without a token, of which Qwen has several hundred."""


SIGLIP_TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}


def llama_3_tokenizer(eos: str = "<|eot_id|>", extra: tuple[str, ...] = ("<|finetune_right_pad_id|>",)) -> Any:
    """Llama 3's kind: byte-level, a begin token by default, offsets without leading spaces, no padding token."""
    backend = _byte_level(digits=3)
    backend.add_special_tokens([*LLAMA_3_TOKENS, *extra])
    begin = (LLAMA_3_TOKENS[0], backend.token_to_id(LLAMA_3_TOKENS[0]))
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]}:1 $B:1", special_tokens=[begin]
            ),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin[0], eos_token=eos)


def qwen2_tokenizer(eos: str = "<|im_end|>") -> Any:
    """Qwen's kind: byte-level after NFC, no begin token; <|endoftext|> pads."""
    model = json.loads(_byte_level(digits=1).to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS, "eos_token": eos})
    return tokenizer


def mistral_tokenizer() -> Any:
    """Mistral's kind up to v0.2: LLaMA's, and no padding token."""
    return AutoTokenizer.from_pretrained(TOKENIZER, pad_token=None)


def mistral_v3_tokenizer() -> Any:
    """Mistral's from v0.3 on: its brackets are tokens."""
    tokenizer = mistral_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: AutoTokenizer.from_pretrained(TOKENIZER),
    "llama_3": llama_3_tokenizer,
    "llama_3_base": lambda: llama_3_tokenizer("<|end_of_text|>", extra=("<|reserved_special_token_0|>",)),
    "qwen2": qwen2_tokenizer,
    "qwen2_base": lambda: qwen2_tokenizer("<|endoftext|>"),
    "mistral": mistral_tokenizer,
    "mistral_v3": mistral_v3_tokenizer,
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
ROPE_OF_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
LLMS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_3": ("llama_3", {"model_type": "llama", "rope_parameters": ROPE_OF_LLAMA_3}),
    "llama_3_tied": ("llama_3", {"model_type": "llama", "tie_word_embeddings": True}),
    "llama_3_base": ("llama_3_base", {"model_type": "llama"}),
    "mistral": ("mistral", {"model_type": "mistral", "sliding_window": 32}),
    "mistral_v3": ("mistral_v3", {"model_type": "mistral", "sliding_window": None}),
    "qwen2": ("qwen2", {"model_type": "qwen2", "tie_word_embeddings": False}),
    "qwen2_tied": ("qwen2_base", {"model_type": "qwen2", "tie_word_embeddings": True}),
    "qwen3": ("qwen2", {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 16}),
    "phi3": ("mistral", {"model_type": "phi3", "tie_word_embeddings": False}),
}
"""Tokenizer and configuration of each tiny LLM."""


def make_llm(folder: Path, name: str) -> Path:
    """Saves the random LLM of that name in `LLMS` (64 wide, 2 layers) with its tokenizer; returns `folder`."""
    kind, fields = LLMS[name]
    tokenizer = TOKENIZERS[kind]()
    tokenizer.save_pretrained(folder)
    spare = QWEN_SPARE_ROWS if kind.startswith("qwen2") else 0
    config = AutoConfig.for_model(
        **{**SIZES, **fields},
        vocab_size=len(tokenizer) + spare,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_siglip(folder: Path, *, image_size: int = 52, patch_size: int = 4, whole: bool = False) -> Path:
    """Saves a random SigLIP tower (16 channels, 3 layers), or a whole SigLIP, with its image processor.

    Its image processor stretches images to a square and crops nothing, as SigLIP's does.
    """
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {**part, "image_size": image_size, "patch_size": patch_size}
    config = SiglipConfig(vision_config=vision, text_config={**part, **SIGLIP_TEXT})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SiglipModel(config)
        (model if whole else model.vision_model).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    SiglipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def _byte_level(digits: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if digits == 1 else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT.replace("DIGITS", str(digits))), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    return backend
