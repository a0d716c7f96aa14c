"""Every variant by configuration alone, its sizes, and what is refused."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from llava_sp import LlavaSPConfig
from llava_sp.model.configuration_llava_sp import default_sides
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.model.variants import VARIANTS
from llava_sp.utils.errors import UserError


def real_config(variant: str = "cropping", image_size: int = 336, **fields) -> LlavaSPConfig:
    """The paper's sizes: CLIP ViT-L/14 and a LLaMA of 7B; one layer each, for the parts between are what is tested."""
    vision = CLIPVisionConfig(
        hidden_size=1024, num_attention_heads=16, patch_size=14, image_size=image_size, num_hidden_layers=1
    )
    return LlavaSPConfig.from_variant(
        variant, vision_config=vision, text_config=LlamaConfig(hidden_size=4096, num_hidden_layers=1), **fields
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "variant,spatial,mebibytes",
    [
        ("pooling", 765_460_480, 1500.02),
        ("cropping", 902_570_496, 1761.53),
        ("pooling_dfi", 902_566_400, 1761.52),
        ("transformer", 406_988_800, 816.3),
        ("none", 0, 40.02),
    ],
)
def test_sizes_of_the_paper(variant, spatial, mebibytes):
    with torch.device("meta"):
        projector = LlavaSPProjector(real_config(variant))
    assert (0 if projector.spatial is None else parameters(projector.spatial)) == spatial
    assert parameters(projector) * 2 / 2**20 == pytest.approx(mebibytes, abs=0.05)
    assert parameters(projector) - spatial == 20_979_712


def test_sizes_of_the_sfe():
    with torch.device("meta"):
        six = LlavaSPProjector(real_config("cropping")).spatial
        twelve = LlavaSPProjector(real_config("twelve_tokens")).spatial
    assert parameters(six.sfe) == 763_363_328
    assert round(parameters(twelve) * 2 / 2**20) == 2604


@pytest.mark.parametrize(
    "variant,image_size,sides,detail_tokens",
    [
        ("cropping", 336, [4, 8, 12, 16, 20, 24], [25]),
        ("pooling", 336, [4, 8, 12, 16, 20, 24], []),
        ("three_tokens", 336, [8, 16, 24], []),
        ("twelve_tokens", 336, list(range(2, 25, 2)), []),
        ("eight_tokens", 224, list(range(2, 17, 2)), []),
        ("one_token", 336, [24], []),
        ("multi_dfi_concat", 336, [4, 8, 12, 16, 20, 24], [49, 64, 100]),
        ("none", 336, [], []),
    ],
)
def test_maps_and_detail_tokens_of_the_paper(variant, image_size, sides, detail_tokens):
    config = real_config(variant, image_size)
    assert config.sfe_sides == sides
    assert config.num_spatial_tokens == len(sides)
    assert config.image_seq_length == len(sides) + (image_size // 14) ** 2
    found = [((config.grid_side - kernel) // config.dfi_stride + 1) ** 2 for kernel in config.dfi_kernels]
    assert found == detail_tokens


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("centred", [True, False])
def test_default_sides_fit_any_grid(tokens, centred):
    for grid_side in range(1, 33):
        exact = not centred and grid_side % tokens == 0
        if tokens > (grid_side + 1) // 2 and not exact:
            with pytest.raises(UserError, match="num_spatial_tokens"):
                default_sides(grid_side, tokens, centred=centred)
            continue
        sides = default_sides(grid_side, tokens, centred=centred)
        assert len(sides) == tokens
        assert sides == sorted(set(sides))
        assert sides[0] >= 1
        assert sides[-1] == grid_side
        if exact:
            assert sides == [grid_side // tokens * (i + 1) for i in range(tokens)]
        else:
            assert all((grid_side - side) % 2 == 0 for side in sides)


def test_a_tower_of_27_patches_gets_odd_windows():
    assert default_sides(27, 6, centred=True) == [5, 9, 13, 17, 23, 27]


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"sfe_sides": [3]}, "side 3 cannot be centred in the 24 x 24 grid; use even sides"),
        ({"sfe_sides": [26]}, "side 26 does not fit the 24 x 24 grid"),
        ({"sfe_sides": [0]}, "side 0 does not fit"),
        ({"sfe_sides": [8, 8]}, "names a side twice"),
        ({"sfe_sides": []}, "sfe_sides is empty"),
        ({"num_spatial_tokens": 0}, "at least 1"),
        ({"num_spatial_tokens": 13}, "no 13 different centred maps; use at most 12"),
        ({"dfi_kernels": [25]}, "kernel of 25 does not fit"),
        ({"dfi_stride": 0}, "dfi_stride"),
        ({"sfe_channels": 0}, "sfe_channels"),
        ({"sfe_maps": "none", "dfi_kernels": [16]}, "sfe_maps is 'none'"),
        ({"sfe_operator": "transformer", "dfi_kernels": [16]}, "transformer SFE has no DFI"),
        ({"sfe_operator": "transformer", "sfe_transformer_heads": 7}, "1024 channels cannot be split over 7 heads"),
        ({"patch_merge_type": "spatial"}, "'spatial' lays out several tiles, and an image is one"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints is empty"),
        ({"image_grid_pinpoints": [[336, 500]]}, r"\[336, 500\] is no \[height, width\] in multiples of .* 336 pixels"),
        ({"image_grid_pinpoints": [[336]]}, r"\[336\] is no"),
        ({"image_grid_pinpoints": [[0, 336]]}, r"\[0, 336\] is no"),
        ({"image_grid_pinpoints": [[336 * 10**6, 336]]}, "more than 256 tiles"),
        ({"num_spatial_tokens": 10**12}, "use at most 12"),
        ({"sfe_maps": "pooling", "num_spatial_tokens": 10**12}, "use at most 12"),
        ({"dfi_stride": 25}, "dfi_stride must be from 1 to 24"),
        ({"sfe_channels": 10**12}, "sfe_channels must be from 1 to 65,536"),
        ({"sfe_operator": "transformer", "sfe_transformer_heads": 0}, "cannot be split over 0 heads"),
        ({"sfe_operator": "transformer", "sfe_transformer_layers": 10**9}, "sfe_transformer_layers must be from 1"),
        ({"sfe_operator": "transformer", "sfe_transformer_dropout": 1.0}, "sfe_transformer_dropout must be from 0"),
        ({"vision_feature_layer": 2}, "2 is none of the tower's 1 layers"),
        ({"vision_feature_layer": []}, "None is none of the tower's"),
        ({"llm_vocab_size": 0}, "llm_vocab_size must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_plain_words(fields, message):
    with pytest.raises(UserError, match=message):
        real_config(**fields)


@pytest.mark.parametrize(
    "part",
    [
        {"patch_size": 0},
        {"patch_size": 337},
        {"image_size": -336},
        {"patch_size": [14, 14]},
        {"model_type": "no_tower"},
    ],
)
def test_a_tower_without_a_grid_is_refused(part):
    with pytest.raises(UserError, match=r"no square grid|not valid"):
        LlavaSPConfig(vision_config={"model_type": "clip_vision_model", **part}, text_config=LlamaConfig())


@pytest.mark.parametrize("size", [14 * 1025, 2**31])
def test_a_tower_whose_grid_would_fill_the_memory_is_refused(size):
    tower = {"model_type": "clip_vision_model", "image_size": size, "patch_size": 14}
    with pytest.raises(UserError, match="at most 1,024 are taken"):
        LlavaSPConfig(vision_config=tower, text_config=LlamaConfig(), num_spatial_tokens=2**31)


def test_unknown_values_are_refused():
    with pytest.raises(UserError, match=r"Unknown variant 'spiral'\. Choose one of: cropping"):
        real_config("spiral")
    with pytest.raises(UserError, match=r"not valid.*'sfe_maps'"):
        real_config(sfe_maps="spiral")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_survives_saving(variant, tmp_path):
    fields = {"num_spatial_tokens": 6} if variant == "eight_tokens" else {}
    config = real_config(variant, **fields)
    config.save_pretrained(tmp_path)
    loaded = LlavaSPConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
