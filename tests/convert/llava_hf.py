"""A tiny LLaVA-1.5 in llava-hf's layout, as their conversion makes it: `<image>` and `<pad>` added, rows rounded up."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.tiny import IMAGE_SIZE, PATCH_SIZE, VOCABULARY

PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
ROWS = VOCABULARY + 64


def write_llava_hf(parts: tuple[Path, Path], folder: Path, *, old_names: bool = False) -> Path:
    """Saves a random model with its processor; `old_names` are those of before transformers 4.52."""
    llm, tower = parts
    text_config = AutoConfig.from_pretrained(llm)
    text_config.vocab_size = ROWS
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(tower),
        text_config=text_config,
        image_token_index=VOCABULARY,
        image_seq_length=PATCHES,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = LlavaForConditionalGeneration(config)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"  # noqa: S105 - no password
    image_processor = CLIPImageProcessorPil.from_pretrained(tower)
    model.save_pretrained(folder)
    LlavaProcessor(image_processor, tokenizer, PATCH_SIZE, "default", num_additional_image_tokens=1).save_pretrained(
        folder
    )
    file = folder / "model.safetensors"
    tensors = load_file(file)
    # What transformers 5 has in memory; it writes names in between the two.
    new = {name: value.clone() for name, value in model.state_dict().items()}
    if old_names:
        new = {_old_name(name): value for name, value in new.items()}
        assert "language_model.model.embed_tokens.weight" in new
    assert new.keys() != tensors.keys()
    save_file(new, file, metadata={"format": "pt"})
    return folder


def _old_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.")
    return name.replace("vision_tower.", "vision_tower.vision_model.")
