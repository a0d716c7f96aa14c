"""Towers other than CLIP-L/14-336: with and without a class token, odd grids, and their own image settings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, Siglip2VisionConfig, SiglipImageProcessorPil, SiglipVisionConfig

from llava_sp.model import loading, parts
from llava_sp.utils.errors import UserError
from tests.families import make_siglip
from tests.tiny import make_tower

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_siglip_as_a_part(tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    """All patches are used, and pixels are those of SigLIP's own image processor."""
    tower = make_siglip(tmp_path / "siglip")
    model, processor = loading.build(str(tiny_parts[0]), str(tower), overrides={"sfe_channels": 8})
    assert model.config.vision_feature_select_strategy == "full"
    assert model.config.grid_side == 13
    assert processor.num_image_tokens_of(30, 70) == model.config.image_seq_length == 6 + 169
    pixels = np.random.default_rng(0).integers(0, 255, (30, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    processor.image_processor.image_aspect_ratio = "square"
    found = processor(images=image, text="<image>\nWhat?", return_tensors="pt")
    assert (found["input_ids"] == processor.image_token_id).sum() == 6 + 169
    expected = SiglipImageProcessorPil.from_pretrained(tower)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found["pixel_values"], expected)
    with torch.no_grad():
        patches = model.model.vision_tower(expected, output_hidden_states=True).hidden_states[-2]
        assert patches.shape == (1, 169, 16)
        assert model(**found).logits.isfinite().all()


def test_the_vision_part_of_a_whole_siglip(tmp_path: Path) -> None:
    whole = parts.load_tower(str(make_siglip(tmp_path / "whole", whole=True))).state_dict()
    part = parts.load_tower(str(make_siglip(tmp_path / "part"))).state_dict()
    assert whole.keys() == part.keys()
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("config", "side", "strategy", "sides", "kernels"),
    [
        (SiglipVisionConfig(**SMALL, image_size=384, patch_size=14), 27, "full", [5, 9, 13, 17, 23, 27], [18]),
        (SiglipVisionConfig(**SMALL, image_size=256, patch_size=16), 16, "full", [2, 6, 8, 10, 14, 16], [10]),
        (CLIPVisionConfig(**SMALL, image_size=224, patch_size=14), 16, "default", [2, 6, 8, 10, 14, 16], [10]),
        (CLIPVisionConfig(**SMALL, image_size=336, patch_size=14), 24, "default", [4, 8, 12, 16, 20, 24], [16]),
    ],
    ids=["siglip-so400m-384", "siglip-256", "clip-l-224", "clip-l-336"],
)
def test_grids_of_published_towers(config, side, strategy, sides, kernels, tiny_parts: tuple[Path, Path]) -> None:
    text_config = parts.read_config(tiny_parts[0])
    joined = parts.join_configs(text_config, config, 1000, {})
    assert (joined.grid_side, joined.vision_feature_select_strategy) == (side, strategy)
    assert (joined.sfe_sides, joined.dfi_kernels) == (sides, kernels)
    assert joined.image_seq_length == 6 + side**2


@pytest.mark.parametrize("variant", ["pooling_dfi", "cropping"])
def test_a_27_x_27_grid_runs(variant: str, tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    """384 px are no multiple of 14: the last pixels are left out, as SigLIP itself does."""
    tower = make_siglip(tmp_path, image_size=384, patch_size=14)
    model, processor = loading.build(
        str(tiny_parts[0]), str(tower), variant=variant, overrides={"sfe_channels": 8}, image_aspect_ratio="pad"
    )
    inputs = processor(images=Image.new("RGB", (100, 50)), text="<image>\nWhat?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 384, 384)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 6 + 729
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_a_tower_without_a_square_grid_is_refused(tiny_parts: tuple[Path, Path]) -> None:
    text_config = parts.read_config(tiny_parts[0])
    with pytest.raises(UserError, match=r"'siglip2_vision_model'.*one square image size"):
        parts.join_configs(text_config, Siglip2VisionConfig(**SMALL), 1000, {})


def test_clip_keeps_its_class_token_out(tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = loading.build(str(tiny_parts[0]), str(make_tower(tmp_path)), overrides={"sfe_channels": 8})
    assert model.config.vision_feature_select_strategy == "default"
    assert model.config.image_seq_length == 6 + 144
