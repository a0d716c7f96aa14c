"""The spatial part computes what its definition says: convolutions over maps, and cross-attention to details."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig

from llava_sp import LlavaSPConfig
from llava_sp.model.spatial.feature_extractor import FullKernel, crop_maps, pool_maps
from llava_sp.model.spatial.projector import LlavaSPProjector

CHANNELS, WIDTH, HIDDEN = 6, 5, 16


def projector(variant: str, grid_side: int = 12, **fields) -> LlavaSPProjector:
    vision = CLIPVisionConfig(hidden_size=CHANNELS, num_attention_heads=2, patch_size=4, image_size=4 * grid_side)
    text = LlamaConfig(hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2)
    config = LlavaSPConfig.from_variant(
        variant, vision_config=vision, text_config=text, sfe_channels=WIDTH, **{"sfe_transformer_heads": 2, **fields}
    )
    torch.manual_seed(0)
    return LlavaSPProjector(config).double().eval()


def features(grid_side: int = 12, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, grid_side**2, CHANNELS, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def as_convolution(kernel: FullKernel) -> torch.Tensor:
    return FullKernel.to_convolution(kernel.weight, kernel.side)


def test_windows_are_centred_and_central_first():
    grid = torch.arange(24 * 24).view(1, 24, 24, 1)
    maps = crop_maps(grid, [4, 8, 24])
    assert torch.equal(maps[0], grid[:, 10:14, 10:14])
    assert torch.equal(maps[1], grid[:, 8:16, 8:16])
    assert torch.equal(maps[2], grid)


def test_pooling_averages_the_whole_grid_with_overlapping_bins():
    grid = torch.randn(2, 24, 24, 3, dtype=torch.double)
    half, overlapping, whole = pool_maps(grid, [12, 16, 24])
    torch.testing.assert_close(half[:, 0, 0], grid[:, :2, :2].mean(dim=(1, 2)))
    torch.testing.assert_close(overlapping[:, 1, 1], grid[:, 1:3, 1:3].mean(dim=(1, 2)))  # floor(24/16), ceil(48/16)
    assert whole is grid


@pytest.mark.parametrize("variant", ["cropping_no_dfi", "pooling"])
def test_sfe_tokens_are_convolutions_over_their_maps(variant):
    module, patches = projector(variant), features()
    make_maps = crop_maps if variant == "cropping_no_dfi" else pool_maps
    grid = patches.view(3, 12, 12, CHANNELS)
    maps = make_maps(grid, module.spatial.sfe.sides)
    tokens = [
        F.conv2d(window.permute(0, 3, 1, 2), as_convolution(operator)).flatten(1)
        for operator, window in zip(module.spatial.sfe.operators, maps, strict=True)
    ]
    spatial = F.linear(F.gelu(torch.stack(tokens, dim=1)), module.spatial.output.weight)
    output = module(patches)
    torch.testing.assert_close(output[:, :6], spatial)
    torch.testing.assert_close(output[:, 6:], module.linear_2(F.gelu(module.linear_1(patches))))


@pytest.mark.parametrize("fields", [{}, {"dfi_kernels": [7, 5, 3]}, {"dfi_kernels": [7, 5, 3], "dfi_fusion": "sum"}])
def test_dfi_is_cross_attention_to_the_strided_convolution(fields):
    module, patches = projector("cropping", **fields), features()
    grid = patches.view(3, 12, 12, CHANNELS)
    tokens = module.spatial.sfe(grid)
    attended = []
    for scale in module.spatial.dfi.scales:
        details = F.conv2d(grid.permute(0, 3, 1, 2), as_convolution(scale.detail), stride=2).flatten(2).transpose(1, 2)
        scores = scale.query(tokens) @ scale.key(details).transpose(1, 2) / math.sqrt(WIDTH)
        attended.append(scores.softmax(dim=-1) @ scale.value(details))
    fused = [sum(attended)] if fields.get("dfi_fusion") == "sum" else attended
    torch.testing.assert_close(module.spatial.dfi(tokens, grid), torch.cat([tokens, *fused], dim=-1))


def test_the_transformer_reads_the_patches_of_its_map():
    module, patches = projector("transformer"), features()
    output = module(patches)
    assert output.shape == (3, 6 + 144, HIDDEN)
    outside = patches.view(3, 12, 12, CHANNELS).clone()
    outside[:, 0] *= -1  # the first row is in the whole map alone
    moved = module(outside.view_as(patches))
    torch.testing.assert_close(moved[:, :5], output[:, :5])
    assert not torch.allclose(moved[:, 5], output[:, 5])


def test_reordering_a_kernel_and_back():
    weight = torch.randn(WIDTH, CHANNELS, 3, 3)
    assert torch.equal(FullKernel.to_convolution(FullKernel.from_convolution(weight), 3), weight)


@pytest.mark.parametrize("grid_side", [8, 9, 13, 16])
@pytest.mark.parametrize("variant", ["cropping", "pooling_dfi", "transformer", "none"])
def test_any_grid(variant, grid_side):
    fields = {} if variant == "none" else {"num_spatial_tokens": 4}
    output = projector(variant, grid_side, **fields)(features(grid_side))
    assert output.shape == (3, grid_side**2 + (0 if variant == "none" else 4), HIDDEN)
