"""The named variants: each is a set of fields of `LlavaSPConfig`, and nothing else.

`cropping` and `pooling` are the paper's two models, `none` is LLaVA-1.5, the rest its ablations. A variant of
your own needs no entry here: give the fields to `LlavaSPConfig`, to a YAML file, or on the command line.
"""

from typing import Any

from llava_sp.utils.errors import UserError

VARIANTS: dict[str, dict[str, Any]] = {
    # The paper's models, and the matched baseline.
    "cropping": {"sfe_maps": "cropping", "spatial_bias": True},
    "pooling": {"sfe_maps": "pooling", "dfi_kernels": []},
    "none": {"sfe_maps": "none"},
    # Ablations: with and without DFI.
    "pooling_dfi": {"sfe_maps": "pooling"},
    "cropping_no_dfi": {"sfe_maps": "cropping", "dfi_kernels": []},
    # Ablations: how many tokens.
    "one_token": {"sfe_maps": "cropping", "dfi_kernels": [], "num_spatial_tokens": 1},
    "three_tokens": {"sfe_maps": "cropping", "dfi_kernels": [], "num_spatial_tokens": 3},
    "eight_tokens": {"sfe_maps": "cropping", "dfi_kernels": [], "num_spatial_tokens": 8},
    "twelve_tokens": {"sfe_maps": "cropping", "dfi_kernels": [], "num_spatial_tokens": 12},
    # Ablations: detail at several scales.
    "multi_dfi_concat": {"sfe_maps": "cropping", "dfi_kernels": [12, 9, 5], "dfi_fusion": "concat"},
    "multi_dfi_sum": {"sfe_maps": "pooling", "dfi_kernels": [12, 9, 5], "dfi_fusion": "sum", "spatial_bias": True},
    # Ablation: transformers in place of convolutions.
    "transformer": {"sfe_maps": "cropping", "sfe_operator": "transformer", "dfi_kernels": []},
}


def variant_fields(name: str) -> dict[str, Any]:
    """Returns the configuration fields of a named variant.

    Raises:
        UserError: There is no such variant; the message lists those there are.
    """
    if name not in VARIANTS:
        raise UserError(f"Unknown variant {name!r}. Choose one of: {', '.join(VARIANTS)}.")
    return dict(VARIANTS[name])
