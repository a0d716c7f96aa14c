"""The official layout of the projector: which variant a set of keys is, and where each tensor goes in ours.

Keys are relative to the official `model.`. The variant is told from the keys and shapes alone; nothing is guessed from
a folder's name or from a flag.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llava_sp.model.spatial.feature_extractor import FullKernel
from llava_sp.utils.errors import UserError

SCALES = ("small", "mid", "huge")
"""The official names of the multi-scale DFI's three kernels, in the order of their fusion."""

PATCH_PROJECTOR = {
    "mm_projector.0.weight": "linear_1.weight",
    "mm_projector.0.bias": "linear_1.bias",
    "mm_projector.2.weight": "linear_2.weight",
    "mm_projector.2.bias": "linear_2.bias",
}


class Move(NamedTuple):
    """Where one of our tensors comes from: an official name, and how its values are rearranged."""

    source: str
    rearrange: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Layout:
    """What the keys say.

    Args:
        fields: Fields of `LlavaSPConfig`.
        moves: Source of each of our projector's tensors, by our name.
        unused: Official tensors that the official forward pass never reads.
    """

    fields: dict[str, Any]
    moves: dict[str, Move]
    unused: frozenset[str]


def read_layout(shapes: Mapping[str, torch.Size]) -> Layout:
    """Tells the variant from the official projector's keys and shapes.

    Args:
        shapes: Shape of each official tensor, by name relative to `model.`.

    Raises:
        UserError: The keys belong to no layout that is known.
    """
    moves = {ours: Move(official) for official, ours in PATCH_PROJECTOR.items()}
    if any(name.startswith("tfm_") for name in shapes):
        return _transformer_layout(shapes, moves)
    convolutions = _convolutions(shapes)
    details = _detail_kernels(shapes)
    if not convolutions:
        if details or any(name.startswith("conv_") for name in shapes):
            raise UserError("The checkpoint has convolutions, but none of the SFE's conv_<number>: an unknown layout.")
        return Layout({"sfe_maps": "none"}, moves, frozenset())

    sides = sorted(convolutions)
    for index, side in enumerate(sides):
        moves[f"spatial.sfe.operators.{index}.weight"] = Move(convolutions[side], FullKernel.from_convolution)
    channels = shapes[convolutions[sides[0]]][0]
    fields: dict[str, Any] = {
        "sfe_maps": "pooling" if any(name.endswith(".1.weight") for name in convolutions.values()) else "cropping",
        "sfe_sides": sides,
        "sfe_channels": channels,
        "dfi_kernels": [shapes[name][-1] for _, name in details],
        **_output_projection(shapes, moves, "conv_linear"),
    }
    unused = _detail_moves(moves, details)
    if details:
        inputs = shapes.get("conv_linear.1.weight", (0, 0))[1]
        fields["dfi_fusion"] = "sum" if len(details) > 1 and inputs == 2 * channels else "concat"
    return Layout(fields, moves, frozenset(unused & shapes.keys()))


def _convolutions(shapes: Mapping[str, torch.Size]) -> dict[int, str]:
    """Returns the name of each SFE convolution by its side; the number in the name need not be the side."""
    found: dict[int, str] = {}
    for name, shape in shapes.items():
        if re.fullmatch(r"conv_\d+(\.1)?\.weight", name):
            if len(shape) != 4 or shape[2] != shape[3]:
                raise UserError(f"{name} has the shape {list(shape)}; an SFE convolution is [out, in, side, side].")
            if shape[2] in found:
                raise UserError(f"{name} and {found[shape[2]]} have the same side {shape[2]}: an unknown layout.")
            found[shape[2]] = name
    return found


def _detail_kernels(shapes: Mapping[str, torch.Size]) -> list[tuple[str, str]]:
    """Returns the suffix of the attention's names and the convolution's name, for each detail kernel."""
    candidates = [("", "conv_CM.weight"), *((f"_{scale}", f"conv_{scale}.weight") for scale in SCALES)]
    return [(suffix, name) for suffix, name in candidates if name in shapes]


def _detail_moves(moves: dict[str, Move], details: list[tuple[str, str]]) -> set[str]:
    """Adds the DFI's tensors; returns the official ones that are never read.

    With several scales the official forward pass uses the first scale's value projection for all of them.
    """
    unused = set()
    for index, (suffix, convolution) in enumerate(details):
        prefix = f"spatial.dfi.scales.{index}"
        moves[f"{prefix}.detail.weight"] = Move(convolution, FullKernel.from_convolution)
        for ours in ("query", "key", "value"):
            source = details[0][0] if ours == "value" else suffix
            for tail in ("0.weight", "0.bias", "1.weight", "1.bias"):
                moves[f"{prefix}.{ours}.{tail}"] = Move(f"{ours}_projector{source}.{tail}")
                if source != suffix:
                    unused.add(f"{ours}_projector{suffix}.{tail}")
    return unused


def _transformer_layout(shapes: Mapping[str, torch.Size], moves: dict[str, Move]) -> Layout:
    """The ablation with transformers; its keys do not tell cropping from pooling, and cropping is assumed."""
    sides = sorted(int(name.removeprefix("query_")) for name in shapes if re.fullmatch(r"query_\d+", name))
    if not sides:
        raise UserError("The checkpoint has transformers (tfm_*) but no query_<side>: an unknown layout.")
    layers = 0
    for index, side in enumerate(sides):
        moves[f"spatial.sfe.operators.{index}.query"] = Move(f"query_{side}")
        for name in shapes:
            if name.startswith(f"tfm_{side}."):
                tail = name.removeprefix(f"tfm_{side}.")
                moves[f"spatial.sfe.operators.{index}.transformer.{tail}"] = Move(name)
                if match := re.match(r"encoder\.layers\.(\d+)\.", tail):
                    layers = max(layers, int(match[1]) + 1)
    fields = {
        "sfe_maps": "cropping",
        "sfe_operator": "transformer",
        "sfe_sides": sides,
        "sfe_transformer_layers": layers,
        "dfi_kernels": [],
        **_output_projection(shapes, moves, "tfm_linear"),
    }
    return Layout(fields, moves, frozenset())


def _output_projection(shapes: Mapping[str, torch.Size], moves: dict[str, Move], name: str) -> dict[str, bool]:
    has_bias = f"{name}.1.bias" in shapes
    for kind in ("weight", "bias") if has_bias else ("weight",):
        moves[f"spatial.output.{kind}"] = Move(f"{name}.1.{kind}")
    return {"spatial_bias": has_bias}
