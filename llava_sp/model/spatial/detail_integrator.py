"""The Detail Feature Integrator, DFI (paper section 3.3): SFE tokens attend to fine details of the whole grid.

Shapes: B batch, n side of the grid, m side of the map of detail tokens, C channels of the tower, D `sfe_channels`,
T spatial tokens, K detail kernels.
"""

import torch
from torch import nn
from torch.nn import functional as F

from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.spatial.feature_extractor import FullKernel


class DetailAttention(nn.Module):
    """Single-head cross-attention from the SFE tokens to the detail tokens of one strided convolution.

    No mask, dropout, output projection or residual. The convolution runs as a matrix product over its windows.

    Args:
        kernel: Side of the convolution's kernel in patches.
        stride: Its stride in patches.
        in_channels: Channels C of the grid.
        channels: Channels D of the tokens.
    """

    def __init__(self, kernel: int, stride: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.detail = FullKernel(kernel, in_channels, channels)
        self.query = _normed_linear(channels)
        self.key = _normed_linear(channels)
        self.value = _normed_linear(channels)

    def forward(self, tokens: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Maps SFE tokens [B, T, D] and the grid [B, n, n, C] to attended features [B, T, D]."""
        kernel = self.detail.side
        windows = grid.unfold(1, kernel, self.stride).unfold(2, kernel, self.stride)  # [B, m, m, C, k, k]
        details = self.detail(windows.permute(0, 1, 2, 4, 5, 3)).flatten(1, 2)  # [B, m * m, D]
        return F.scaled_dot_product_attention(self.query(tokens), self.key(details), self.value(details))


class DetailFeatureIntegrator(nn.Module):
    """Enriches each SFE token with details at one or several scales: [B, T, D] -> [B, T, `channels`].

    Attributes:
        channels: Channels after fusion: D for the SFE token, and D per kernel (`"concat"`) or D once (`"sum"`).
    """

    def __init__(self, config: LlavaSPConfig) -> None:
        super().__init__()
        self.fusion = config.dfi_fusion
        self.scales = nn.ModuleList(
            DetailAttention(kernel, config.dfi_stride, config.feature_channels, config.sfe_channels)
            for kernel in config.dfi_kernels or []
        )
        attended = 1 if self.fusion == "sum" else len(self.scales)
        self.channels = config.sfe_channels * (1 + attended)

    def forward(self, tokens: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Returns [SFE token ; attended features] on the channels."""
        attended = [scale(tokens, grid) for scale in self.scales]
        if self.fusion == "sum":
            attended = [torch.stack(attended).sum(dim=0)]
        return torch.cat([tokens, *attended], dim=-1)


def _normed_linear(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
