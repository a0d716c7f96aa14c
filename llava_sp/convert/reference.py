"""What an official checkpoint computes, straight from its own tensors and names: nothing here uses our model.

Spatial kernels run as the convolutions that they are saved as, LoRA stays beside the weights, and visual tokens are
spliced into the embeddings, as the official code does.

Shapes: B batch, N = n * n patches, C channels of the tower, D of an SFE token, T spatial tokens, H hidden size.
"""

import re
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from llava_sp.convert.source import Source
from llava_sp.convert.tensors import Tensors
from llava_sp.model import parts
from llava_sp.model.partial import read_lora_config

Weights = dict[str, torch.Tensor]


@torch.inference_mode()
def visual_tokens(
    source: Source, tower_home: str, views: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Returns the visual tokens [T + N, H] of an image: spatial ones, if the checkpoint has any, then patches.

    Args:
        source: The checkpoint.
        tower_home: Where the tower lies if not in the checkpoint; its configuration in any case.
        views: The preprocessed image, or for AnyRes its views [views, 3, S, S].
        size: For AnyRes the image's height and width in pixels.
    """
    if source.tower:
        tower = _from_state(AutoModel, parts.load_vision_config(tower_home), source.tower)
    else:
        tower = parts.load_tower(tower_home)
    layer = source.config.get("mm_vision_select_layer", -2)
    features = tower(views.to(tower.dtype), output_hidden_states=True).hidden_states[layer].float()
    side = tower.config.image_size // tower.config.patch_size
    features = features[:, -(side**2) :]  # without the class token
    weights = {name: tensor.read().float() for name, tensor in source.projector.items()}
    hidden = F.gelu(F.linear(features, weights["mm_projector.0.weight"], weights["mm_projector.0.bias"]))
    tokens = F.linear(hidden, weights["mm_projector.2.weight"], weights["mm_projector.2.bias"])
    if any(name.startswith(("conv_", "tfm_")) for name in weights):
        grid = features.transpose(1, 2).unflatten(2, (side, side))
        tokens = torch.cat([spatial_tokens(grid, weights), tokens], dim=1)
    if size is None:
        return tokens[0]
    return join_views(tokens, size, side, tower.config.image_size, source.config, weights)


def join_views(
    views: torch.Tensor, size: tuple[int, int], n: int, tile: int, config: dict[str, Any], weights: Weights
) -> torch.Tensor:
    """Joins the visual tokens of an AnyRes image's views, by the functions of transformers' LLaVA-NeXT.

    Args:
        views: Tokens of each view [views, T + N, H], the base first.
        size: The image's height and width in pixels.
        n: Side of a view in patches.
        tile: Side of a view in pixels.
        config: LLaVA's fields.
        weights: The official projector.
    """
    if config["mm_patch_merge_type"] == "flat":
        return views.flatten(0, 1)
    spatial, patches = views[:, : -n * n], views[:, -n * n :]
    pinpoints = [[height, width] for width, height in config["image_grid_pinpoints"]]
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, tile)
    grid = patches[1:].reshape(rows, columns, n, n, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    if config["mm_patch_merge_type"] == "spatial_unpad":
        grid = unpad_image(grid, size)
        newline = weights["image_newline"][:, None, None].expand(-1, grid.shape[1], 1)
        grid = torch.cat([grid, newline], dim=2)
    return torch.cat([spatial.flatten(0, 1), patches[0], grid.flatten(1, 2).T])


def load_llm(source: Source) -> nn.Module:
    """Loads the LLM of an official checkpoint, LoRA beside its weights."""
    if source.kind == "full":
        return _from_state(AutoModelForCausalLM, source.text_config, source.weights)
    llm = parts.load_llm(source.llm)
    if not source.lora:
        return llm
    return PeftModel.from_pretrained(llm, source.home, config=read_lora_config(source.home)).eval()


def spatial_tokens(grid: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Maps the grid of patch features [B, C, n, n] to spatial tokens [B, T, H]."""
    n = grid.shape[-1]
    if any(name.startswith("tfm_") for name in weights):
        sides = sorted(int(name.removeprefix("query_")) for name in weights if name.startswith("query_"))
        tokens = torch.stack([_read_by_transformer(_window(grid, side), side, weights) for side in sides], dim=1)
        return _output(tokens, "tfm_linear.1", weights)
    kernels = sorted((weights[name].shape[-1], name) for name in weights if re.match(r"conv_\d+\.", name))
    pooling = any(name.endswith(".1.weight") for _, name in kernels)
    maps = (F.adaptive_avg_pool2d(grid, side) if pooling and side < n else _window(grid, side) for side, _ in kernels)
    tokens = torch.stack(
        [F.conv2d(window, weights[name]).flatten(1) for window, (_, name) in zip(maps, kernels, strict=True)], dim=1
    )
    scales = [suffix for suffix in ("", "_small", "_mid", "_huge") if f"conv{suffix or '_CM'}.weight" in weights]
    attended = [_attend(tokens, grid, suffix, scales[0], weights) for suffix in scales]
    if len(attended) > 1 and weights["conv_linear.1.weight"].shape[1] == 2 * tokens.shape[2]:
        attended = [torch.stack(attended).sum(dim=0)]
    return _output(torch.cat([tokens, *attended], dim=2), "conv_linear.1", weights)


def _window(grid: torch.Tensor, side: int) -> torch.Tensor:
    start = (grid.shape[-1] - side) // 2
    return grid[:, :, start : start + side, start : start + side]


def _attend(tokens: torch.Tensor, grid: torch.Tensor, suffix: str, value_suffix: str, weights: Weights) -> torch.Tensor:
    details = F.conv2d(grid, weights[f"conv{suffix or '_CM'}.weight"], stride=2).flatten(2).transpose(1, 2)

    def project(name: str, inputs: torch.Tensor) -> torch.Tensor:
        norm, linear = ((weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]) for part in (0, 1))
        return F.linear(F.layer_norm(inputs, inputs.shape[-1:], *norm), *linear)

    query = project(f"query_projector{suffix}", tokens)
    key = project(f"key_projector{suffix}", details)
    value = project(f"value_projector{value_suffix}", details)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ value


def _read_by_transformer(window: torch.Tensor, side: int, weights: Weights) -> torch.Tensor:
    own = {name.removeprefix(f"tfm_{side}."): value for name, value in weights.items() if f"tfm_{side}." in name}
    layers = len({name.split(".")[2] for name in own if name.startswith("encoder.layers.")})
    width = window.shape[1]
    transformer = nn.Transformer(
        width, 8, layers, layers, width, batch_first=True, norm_first=True, bias=False, device="meta"
    )
    transformer.load_state_dict(own, assign=True)
    query = weights[f"query_{side}"].expand(window.shape[0], -1, -1)
    return transformer.eval()(window.flatten(2).transpose(1, 2), query).squeeze(1)


def _output(tokens: torch.Tensor, name: str, weights: Weights) -> torch.Tensor:
    return F.linear(F.gelu(tokens), weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _from_state(auto_class: Any, config: PreTrainedConfig, tensors: Tensors) -> PreTrainedModel:
    with torch.device("meta"):
        model_class = type(auto_class.from_config(config, trust_remote_code=False))
    state = {name: tensor.read() for name, tensor in tensors.items()}
    dtype = next(iter(state.values())).dtype
    return model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()
