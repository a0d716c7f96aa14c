"""Configuration of LLaVA-SP: every variant of the spatial part is a choice of these fields."""

import functools
import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig, PreTrainedConfig

from llava_sp.model.tiles import TileLayout
from llava_sp.model.trust import check_kind, without_kernels
from llava_sp.model.variants import variant_fields
from llava_sp.utils.errors import UserError

PatchMergeType = Literal["flat", "spatial", "spatial_unpad"]

MAX_CHANNELS, MAX_TRANSFORMER_LAYERS, MAX_TILES, MAX_GRID_SIDE = 2**16, 100, 256, 1024
"""Far more than makes sense, and less than what exhausts the memory before anybody sees why."""

VOCABULARY_MULTIPLE = 64
"""The embedding is padded to a multiple of this many rows, the size that matrix units and tensor parallelism like."""


def _in_plain_words(cls: type[LlavaConfig]) -> Any:
    """Makes what a field's type or a part's own check raises an error that says so in a sentence."""
    build = cls.__init__

    @functools.wraps(build)
    def init(self: LlavaConfig, *arguments: Any, **fields: Any) -> None:
        try:
            build(self, *arguments, **fields)
        except UserError:
            raise
        except Exception as error:  # the parts are transformers' own, and raise anything
            raise UserError(f"The configuration is not valid: {' '.join(str(error).split())}.") from error

    setattr(cls, "__init__", init)  # noqa: B010 - mypy takes no assignment
    return cls


@_in_plain_words
@strict
class LlavaSPConfig(LlavaConfig):
    r"""Configuration of a LLaVA-SP model: a vision tower, an LLM, and the spatial part between them (paper section 3).

    The hidden sizes and the grid come from `vision_config` and `text_config`; nothing here repeats them.

    Args:
        sfe_maps: How the Spatial Feature Extractor makes its maps from the grid: `"cropping"` takes centred windows,
            `"pooling"` averages the whole grid adaptively, `"none"` has no spatial tokens (LLaVA-1.5).
        sfe_operator: What turns a map into one token: `"conv"`, a convolution that covers its whole map, or
            `"transformer"`, a small transformer with one learned query (the ablation).
        sfe_sides: Sides of the maps in patches, one token each. `None` chooses `num_spatial_tokens` equal steps up to
            the grid's side.
        num_spatial_tokens: Number of spatial tokens T where `sfe_sides` is `None`; follows from `sfe_sides` otherwise.
        sfe_channels: Channels of an SFE token and of the detail tokens (512 in the paper).
        sfe_transformer_layers: Encoder layers, and as many decoder layers, of each transformer.
        sfe_transformer_heads: Attention heads of each transformer.
        sfe_transformer_dropout: Dropout probability in the transformers.
        dfi_kernels: Kernel sides, in patches, of the Detail Feature Integrator's convolutions, one cross-attention
            each; `[]` switches the DFI off, `None` takes one kernel of two thirds of the grid (16 on 24).
        dfi_stride: Stride of the detail convolutions in patches.
        dfi_fusion: How several attended features join: `"concat"` on channels, or `"sum"`. The SFE token is always
            concatenated in front.
        spatial_bias: Whether the output projection of the spatial tokens has a bias.
        image_grid_pinpoints: AnyRes: sizes `[height, width]` in pixels of the grids of tiles that an image may be laid
            out on, the tower's side or multiples of it (LLaVA's own lists are `(width, height)`). Of grids that fit an
            image equally well the first is taken. `None` for one tile an image.
        patch_merge_type: AnyRes: how an image's tiles become one sequence, see `TileLayout`; `"flat"` for one tile.
        llm_vocab_size: Rows of the vocabulary that the LLM was trained with. Later rows exist for `<image>` and for
            padding; they are never generated. `None` means all rows.

    Raises:
        UserError: The fields do not fit together or do not fit the grid; the message says which and why.
    """

    model_type = "llava_sp"

    sfe_maps: Literal["cropping", "pooling", "none"] = "cropping"
    sfe_operator: Literal["conv", "transformer"] = "conv"
    sfe_sides: list[int] | None = None
    num_spatial_tokens: int = 6
    sfe_channels: int = 512
    sfe_transformer_layers: int = 4
    sfe_transformer_heads: int = 8
    sfe_transformer_dropout: float = 0.1
    dfi_kernels: list[int] | None = None
    dfi_stride: int = 2
    dfi_fusion: Literal["concat", "sum"] = "concat"
    spatial_bias: bool = False
    image_grid_pinpoints: list[list[int]] | None = None
    patch_merge_type: PatchMergeType = "flat"
    llm_vocab_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills in what follows from the grid, and refuses what does not fit."""
        super().__post_init__(**kwargs)
        check_kind(self.vision_config)
        check_kind(self.text_config)
        self._check_grid()
        spatial = self.sfe_maps != "none"
        if self.sfe_sides is None:
            centred = self.sfe_maps == "cropping"
            self.sfe_sides = default_sides(self.grid_side, self.num_spatial_tokens, centred=centred) if spatial else []
        if self.dfi_kernels is None:
            self.dfi_kernels = [2 * self.grid_side // 3] if spatial and self.sfe_operator == "conv" else []
        self._check_spatial_fields()
        self.check_tile_fields()
        self.num_spatial_tokens = len(self.sfe_sides)
        self.image_seq_length = self.num_spatial_tokens + self.grid_side**2
        if self.llm_vocab_size is None:
            self.llm_vocab_size = self.text_config.vocab_size
        if self.llm_vocab_size < 1:
            raise UserError(f"llm_vocab_size must be at least 1, not {self.llm_vocab_size}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from what a file holds, except that the file does not choose the kernels."""
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def from_variant(
        cls,
        variant: str,
        *,
        vision_config: PreTrainedConfig | dict,
        text_config: PreTrainedConfig | dict,
        **fields: Any,
    ) -> "LlavaSPConfig":
        """Builds the configuration of a named variant; `fields` override the variant's own."""
        return cls(vision_config=vision_config, text_config=text_config, **{**variant_fields(variant), **fields})

    @property
    def grid_side(self) -> int:
        """Side n of the tower's grid of patches (24 for CLIP ViT-L/14-336)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def feature_channels(self) -> int:
        """Channels C of a patch feature: the tower's hidden size, times the number of layers that are concatenated."""
        layers = 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)
        return self.vision_config.hidden_size * layers

    @property
    def tile_layout(self) -> TileLayout | None:
        """How an image is laid out on several tiles (AnyRes); `None` for one tile an image."""
        if self.image_grid_pinpoints is None:
            return None
        return TileLayout(
            self.image_grid_pinpoints,
            self.patch_merge_type,
            tile_side=self.vision_config.image_size,
            grid_side=self.grid_side,
            spatial_tokens=self.num_spatial_tokens,
        )

    def _check_grid(self) -> None:
        side, patch = (getattr(self.vision_config, name, None) for name in ("image_size", "patch_size"))
        if not isinstance(side, int) or not isinstance(patch, int) or not 1 <= patch <= side:
            raise UserError(f"The vision tower has no square grid: patches of {patch} pixels in an image of {side}.")
        if self.grid_side > MAX_GRID_SIDE:
            raise UserError(
                f"The vision tower's grid has {self.grid_side:,} patches a side ({patch} pixels each in an image of "
                f"{side}); at most {MAX_GRID_SIDE:,} are taken."
            )
        depth, layers = self.vision_config.num_hidden_layers, self.vision_feature_layer
        for layer in [layers] if isinstance(layers, int) else layers or [None]:
            if layer is None or not -depth - 1 <= layer <= depth:
                raise UserError(f"vision_feature_layer: {layer} is none of the tower's {depth} layers.")

    def _check_spatial_fields(self) -> None:
        n = self.grid_side
        if self.sfe_maps == "none":
            if self.sfe_sides or self.dfi_kernels:
                raise UserError(
                    "sfe_maps is 'none', so there are no spatial tokens: leave sfe_sides and dfi_kernels empty."
                )
            return
        for side in self.sfe_sides or []:
            if not 1 <= side <= n:
                raise UserError(
                    f"sfe_sides: a map of side {side} does not fit the {n} x {n} grid; use sides from 1 to {n}."
                )
            if self.sfe_maps == "cropping" and (n - side) % 2:
                raise UserError(
                    f"sfe_sides: a window of side {side} cannot be centred in the {n} x {n} grid; "
                    f"use {'even' if n % 2 == 0 else 'odd'} sides."
                )
        if not self.sfe_sides:
            raise UserError("sfe_sides is empty. For a model without spatial tokens, set sfe_maps to 'none'.")
        if len(set(self.sfe_sides)) != len(self.sfe_sides):
            raise UserError(f"sfe_sides names a side twice: {self.sfe_sides}.")
        for name, most in (("sfe_channels", MAX_CHANNELS), ("dfi_stride", n)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 1 to {most:,}, not {getattr(self, name)}.")
        for kernel in self.dfi_kernels or []:
            if not 1 <= kernel <= n:
                raise UserError(f"dfi_kernels: a kernel of {kernel} does not fit the {n} x {n} grid; use 1 to {n}.")
        if self.sfe_operator == "transformer":
            self._check_transformer_fields()

    def check_tile_fields(self) -> None:
        """Refuses grids that are not made of the tower's tiles."""
        side = self.vision_config.image_size
        if self.image_grid_pinpoints is None:
            if self.patch_merge_type != "flat":
                raise UserError(
                    f"patch_merge_type {self.patch_merge_type!r} lays out several tiles, and an image is one: give "
                    "image_grid_pinpoints too (in training, --image_aspect_ratio anyres), or leave it at 'flat'."
                )
            return
        if not self.image_grid_pinpoints:
            raise UserError("image_grid_pinpoints is empty; name at least one grid, or None for one tile.")
        for size in self.image_grid_pinpoints:
            if len(size) != 2 or any(length < 1 or length % side for length in size):
                raise UserError(
                    f"image_grid_pinpoints: {size} is no [height, width] in multiples of the tower's {side} pixels."
                )
            if size[0] * size[1] > MAX_TILES * side**2:
                raise UserError(f"image_grid_pinpoints: {size} is a grid of more than {MAX_TILES} tiles.")

    def _check_transformer_fields(self) -> None:
        width = self.feature_channels
        if self.dfi_kernels:
            raise UserError("The transformer SFE has no DFI; set dfi_kernels to [].")
        if not 1 <= self.sfe_transformer_layers <= MAX_TRANSFORMER_LAYERS:
            raise UserError(
                f"sfe_transformer_layers must be from 1 to {MAX_TRANSFORMER_LAYERS}, not {self.sfe_transformer_layers}."
            )
        if not 0 <= self.sfe_transformer_dropout < 1:
            raise UserError(f"sfe_transformer_dropout must be from 0 to below 1, not {self.sfe_transformer_dropout}.")
        if self.sfe_transformer_heads < 1 or width % self.sfe_transformer_heads:
            raise UserError(
                f"sfe_transformer_heads: the tower's {width} channels cannot be split over "
                f"{self.sfe_transformer_heads} heads."
            )


def default_sides(grid_side: int, tokens: int, *, centred: bool) -> list[int]:
    """Returns the sides of `tokens` maps in equal steps up to the grid's side.

    Args:
        grid_side: Side n of the grid in patches.
        tokens: Number of maps T.
        centred: The maps are windows that must be centred in the grid (the grid's side less the map's is even): each
            step is rounded to the nearest such side. Pooled maps are rounded only where `tokens` does not divide n.

    Raises:
        UserError: The grid has too few sides for so many maps.
    """
    if tokens < 1:
        raise UserError(f"num_spatial_tokens must be at least 1, not {tokens}; for none, set sfe_maps to 'none'.")
    if not centred and grid_side % tokens == 0:
        return [grid_side // tokens * (i + 1) for i in range(tokens)]
    steps = [grid_side * (i + 1) / tokens for i in range(min(tokens, grid_side + 1))]
    sides = [grid_side - 2 * math.floor((grid_side - step) / 2 + 0.5) for step in steps]
    if min(sides) < 1 or len(set(sides)) < tokens:  # always so with more tokens than sides
        raise UserError(
            f"num_spatial_tokens: the {grid_side} x {grid_side} grid has no {tokens} different centred maps; "
            f"use at most {(grid_side + 1) // 2} tokens, or name the sides in sfe_sides."
        )
    return sides
