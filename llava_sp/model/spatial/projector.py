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
    Where AnyRes closes rows with a learned token, `image_newline`, that one comes last: [B, T + N + 1, H]. So it passes
    through `forward` as every other parameter does, which wrappers of modules (PEFT's, DeepSpeed's) rely on.
    """

    image_newline: nn.Parameter | None

    def __init__(self, config: LlavaSPConfig) -> None:
        super().__init__(config)
        self.spatial = SpatialTokens(config) if config.num_spatial_tokens else None
        closes_rows = config.patch_merge_type == "spatial_unpad"
        row_end = nn.Parameter(torch.empty(config.text_config.hidden_size)) if closes_rows else None
        self.register_parameter("image_newline", row_end)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Returns the visual tokens of each view: T spatial tokens, N patch tokens, and what closes a row."""
        tokens = [super().forward(image_features)]
        if self.spatial is not None:
            tokens.insert(0, self.spatial(image_features))
        if self.image_newline is not None:
            tokens.append(self.image_newline.expand(len(image_features), 1, -1))
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]
