"""Tiny random parts: a whole model that builds and runs in well under a second."""

import shutil
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
TOKENIZER = FIXTURES / "tokenizer"

VOCABULARY = 1000  # of the tokenizer in fixtures/
IMAGE_SIZE, PATCH_SIZE = 48, 4  # a 12 x 12 grid, which six steps of 2 divide


def make_tower(folder: Path) -> Path:
    """Saves a random CLIP tower (16 channels, 3 layers, a 12 x 12 grid) with its image processor; returns `folder`."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=16,
        initializer_factor=4.0,  # larger than usual, so that random features differ between images
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPVisionModel(config).save_pretrained(folder)
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square).save_pretrained(folder)
    return folder


def make_llm(folder: Path) -> Path:
    """Saves a random LLaMA (64 wide, 2 layers, 1000 tokens) with its tokenizer; returns `folder`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.2,  # larger than usual, so that greedy choices are clear of rounding
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def make_parts(folder: Path) -> tuple[Path, Path]:
    """Saves a tiny LLM and a tiny vision tower under `folder`; returns their two folders, the LLM's first."""
    return make_llm(folder / "llm"), make_tower(folder / "tower")
