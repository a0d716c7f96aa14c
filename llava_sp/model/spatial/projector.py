"""From patch features to visual tokens: the spatial tokens first, then the patch tokens (paper section 3.1).

Shapes: B batch, N = n * n patches, C channels of the tower, T spatial tokens, H hidden size of the LLM.
"""

import torch
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.spatial.detail_integrator import DetailFeatureIntegrator
from llava_sp.model.spatial.feature_extractor import SpatialFeatureExtractor


class SpatialTokens(nn.Module):
    """SFE, then DFI where there is one, then GELU and a linear map into the LLM: [B, N, C] -> [B, T, H]."""

    def __init__(self, config: LlavaSPConfig) -> None:
        super().__init__()
        self.grid_side = config.grid_side
        self.sfe = SpatialFeatureExtractor(config)
        self.dfi = DetailFeatureIntegrator(config) if config.dfi_kernels else None
        channels = self.sfe.channels if self.dfi is None else self.dfi.channels
        self.act = nn.GELU()
        self.output = nn.Linear(channels, config.text_config.hidden_size, bias=config.spatial_bias)

    def forward(self, patch_features: torch.Tensor) -> torch.Tensor:
        """Maps patch features [B, N, C], a row-major grid, to spatial tokens [B, T, H]."""
        grid = patch_features.unflatten(1, (self.grid_side, self.grid_side))
        tokens = self.sfe(grid)
        if self.dfi is not None:
            tokens = self.dfi(tokens, grid)
        return self.output(self.act(tokens))


class LlavaSPProjector(LlavaMultiModalProjector):
    """LLaVA's patch projector with the spatial tokens before its output: [B, N, C] -> [B, T + N, H].

    All that stage 1 trains lies in this one module. The patch projector keeps LLaVA's names (`linear_1`, `linear_2`).
    """

    def __init__(self, config: LlavaSPConfig) -> None:
        super().__init__(config)
        self.spatial = SpatialTokens(config) if config.num_spatial_tokens else None

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Returns the visual tokens of each image: T spatial tokens, then N patch tokens."""
        patch_tokens = super().forward(image_features)
        if self.spatial is None:
            return patch_tokens
        return torch.cat([self.spatial(image_features), patch_tokens], dim=1)
