"""The Spatial Feature Extractor, SFE (paper section 3.2): from the grid of patch features to one token per map.

Shapes: B batch, n side of the grid, s side of a map, C channels of the tower, D `sfe_channels`, T maps.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llava_sp.model.configuration_llava_sp import LlavaSPConfig


def crop_maps(grid: torch.Tensor, sides: list[int]) -> list[torch.Tensor]:
    """Cuts centred windows out of the grid, central region first: [B, n, n, C] -> T x [B, s, s, C]."""
    maps = []
    for side in sides:
        start = (grid.shape[1] - side) // 2
        maps.append(grid[:, start : start + side, start : start + side])
    return maps


def pool_maps(grid: torch.Tensor, sides: list[int]) -> list[torch.Tensor]:
    """Averages the whole grid to each side, abstract first: [B, n, n, C] -> T x [B, s, s, C].

    Where s does not divide n the bins overlap, as `torch.nn.AdaptiveAvgPool2d` defines them.
    """
    channels_first = grid.permute(0, 3, 1, 2)
    return [
        grid if side == grid.shape[1] else F.adaptive_avg_pool2d(channels_first, side).permute(0, 2, 3, 1)
        for side in sides
    ]


MAPS = {"cropping": crop_maps, "pooling": pool_maps}


class FullKernel(nn.Module):
    """A convolution, without bias, whose kernel covers its whole input, as the matrix product that it is.

    The weight is stored as [D, k * k * C], rows of the kernel first and channels last: the order in which a map of
    patch features lies in memory. So a step copies no weights, and reads each of them once, which is the cost to beat
    at small batches (64 to 576 MiB a map in the paper's sizes).

    No `nn.Linear`, although it works like one: serving engines put layers of their own in the place of those, which
    take no windows.

    Args:
        side: Side k of the kernel in patches.
        in_channels: Channels C of the input.
        out_channels: Channels D of the output.
    """

    def __init__(self, side: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.side = side
        self.in_features = side * side * in_channels
        self.weight = nn.Parameter(torch.empty(out_channels, self.in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as PyTorch does for convolutions

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Maps windows [..., k, k, C] to [..., D]."""
        return F.linear(window.flatten(-3), self.weight)

    @staticmethod
    def from_convolution(weight: torch.Tensor) -> torch.Tensor:
        """Reorders a convolution's weight [D, C, k, k] into this layer's [D, k * k * C]."""
        return weight.permute(0, 2, 3, 1).flatten(1)

    @staticmethod
    def to_convolution(weight: torch.Tensor, side: int) -> torch.Tensor:
        """Reorders this layer's weight [D, k * k * C] into a convolution's [D, C, k, k]."""
        return weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)


class QueryTransformer(nn.Module):
    """The SFE's ablation: a transformer reads the patches of one map, and one learned query becomes the token.

    Pre-norm, no biases, feed-forward width equal to the model's; the query starts at zero.

    Args:
        channels: Width of the transformer, the tower's C.
        layers: Encoder layers, and as many decoder layers.
        heads: Attention heads.
        dropout: Dropout probability.
    """

    def __init__(self, channels: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        shape: dict[str, Any] = {"d_model": channels, "nhead": heads, "dim_feedforward": channels, "dropout": dropout}
        style: dict[str, Any] = {"batch_first": True, "norm_first": True, "bias": False}
        # nn.Transformer's own encoder would warn at each build that pre-norm rules out its nested tensors.
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shape, **style),
            layers,
            norm=nn.LayerNorm(channels, bias=False),
            enable_nested_tensor=False,
        )
        self.query = nn.Parameter(torch.zeros(1, 1, channels))
        self.transformer = nn.Transformer(**shape, **style, num_decoder_layers=layers, custom_encoder=encoder)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Maps windows [B, s, s, C] to [B, C]."""
        patches = window.flatten(1, 2)
        return self.transformer(patches, self.query.expand(len(patches), -1, -1)).squeeze(1)


class SpatialFeatureExtractor(nn.Module):
    """Turns the grid into one token per map: [B, n, n, C] -> [B, T, `channels`].

    Attributes:
        channels: Channels of a token: `sfe_channels`, or the tower's C for the transformer.
    """

    def __init__(self, config: LlavaSPConfig) -> None:
        super().__init__()
        self.sides: list[int] = config.sfe_sides or []
        self.make_maps = MAPS[config.sfe_maps]
        width = config.feature_channels
        operators: list[nn.Module]
        if config.sfe_operator == "conv":
            self.channels = config.sfe_channels
            operators = [FullKernel(side, width, self.channels) for side in self.sides]
        else:
            self.channels = width
            operators = [
                QueryTransformer(
                    width,
                    config.sfe_transformer_layers,
                    config.sfe_transformer_heads,
                    config.sfe_transformer_dropout,
                )
                for _ in self.sides
            ]
        self.operators = nn.ModuleList(operators)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """Returns the spatial tokens [B, T, D] in the order of `sfe_sides`."""
        maps = self.make_maps(grid, self.sides)
        return torch.stack([operator(window) for operator, window in zip(self.operators, maps, strict=True)], dim=1)
