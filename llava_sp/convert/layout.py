"""The official layout of the projector: what a set of keys says of the variant, and the official name of each tensor.

Keys are relative to the official `model.`. The variant is told from the keys and shapes alone; nothing is guessed from
a folder's name or from a flag.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from llava_sp.model.configuration_llava_sp import default_sides
from llava_sp.model.spatial.feature_extractor import FullKernel
from llava_sp.utils.errors import UserError

SCALES = ("small", "mid", "huge")
"""The official names of the multi-scale DFI's three kernels, in the order of their fusion."""

PAPER_TOKENS = 6


class OfficialTensor(NamedTuple):
    """The official form of one of our projector's tensors: its name, and how values are rearranged each way."""

    name: str
    to_ours: Callable[[torch.Tensor], torch.Tensor] | None = None
    to_official: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Layout:
    """A variant in the official layout.

    Args:
        fields: The variant, as fields of `LlavaSPConfig`.
        grid_side: Side n of the tower's grid.
        numbers: The number in the name of each side's convolution; the ablation at 224 px counts from 1.
    """

    fields: Mapping[str, Any]
    grid_side: int
    numbers: Mapping[int, int]

    def official(self, ours: str) -> OfficialTensor:
        """Returns the official form of a tensor of `LlavaSPProjector`, by our name."""
        if match := re.fullmatch(r"linear_([12])\.(\w+)", ours):
            return OfficialTensor(f"mm_projector.{2 * int(match[1]) - 2}.{match[2]}")
        transformer = self.fields.get("sfe_operator") == "transformer"
        if match := re.fullmatch(r"spatial\.output\.(\w+)", ours):
            return OfficialTensor(f"{'tfm' if transformer else 'conv'}_linear.1.{match[1]}")
        if match := re.fullmatch(r"spatial\.sfe\.operators\.(\d+)\.(.+)", ours):
            side = self.fields["sfe_sides"][int(match[1])]
            if not transformer:
                return _kernel(self._convolution(side), side)
            tail = match[2].removeprefix("transformer.")
            return OfficialTensor(f"query_{side}" if tail == "query" else f"tfm_{side}.{tail}")
        if match := re.fullmatch(r"spatial\.dfi\.scales\.(\d+)\.(\w+)\.(.+)", ours):
            kernels = self.fields["dfi_kernels"]
            scale = SCALES[int(match[1])] if len(kernels) > 1 else ""
            if match[2] == "detail":
                return _kernel(f"conv_{scale or 'CM'}.weight", kernels[int(match[1])])
            return OfficialTensor(f"{match[2]}_projector{scale and f'_{scale}'}.{match[3]}")
        return OfficialTensor(ours)

    def _convolution(self, side: int) -> str:
        # The whole grid needs no pooling, and so no second module to number.
        pooled = self.fields["sfe_maps"] == "pooling" and side != self.grid_side
        return f"conv_{self.numbers[side]}{'.1' if pooled else ''}.weight"


def read_layout(shapes: Mapping[str, torch.Size], grid_side: int) -> Layout:
    """Tells the variant from the official projector's keys and shapes.

    A set of sides that is the paper's with gaps is taken for the paper's, so that the gaps are found to be missing.

    Args:
        shapes: Shape of each official tensor, by name relative to `model.`.
        grid_side: Side n of the tower's grid.

    Raises:
        UserError: The keys belong to no layout that is known.
    """
    if any(name.startswith("tfm_") for name in shapes):
        return _transformer_layout(shapes, grid_side)
    convolutions = _convolutions(shapes)
    details = [name for name in ("CM", *SCALES) if f"conv_{name}.weight" in shapes]
    if not convolutions:
        if details or any(name.startswith("conv_") for name in shapes):
            raise UserError("The checkpoint has convolutions, but none of the SFE's conv_<number>: an unknown layout.")
        return Layout({"sfe_maps": "none"}, grid_side, {})

    maps = "pooling" if any(name.endswith(".1.weight") for name in convolutions.values()) else "cropping"
    sides = _whole_set(sorted(convolutions), grid_side, centred=maps == "cropping")
    numbers = {side: side for side in sides}
    numbers.update((side, int(re.findall(r"\d+", name)[0])) for side, name in convolutions.items())
    channels = shapes[next(iter(convolutions.values()))][0]
    inputs = shapes.get("conv_linear.1.weight", (0, 0))[1]
    fields = {
        "sfe_maps": maps,
        "sfe_sides": sides,
        "sfe_channels": channels,
        "dfi_kernels": [shapes[f"conv_{name}.weight"][-1] for name in details],
        "dfi_fusion": "sum" if len(details) > 1 and inputs == 2 * channels else "concat",
        "spatial_bias": "conv_linear.1.bias" in shapes,
    }
    if not details and (inputs == 2 * channels or any(name.startswith("query_projector") for name in shapes)):
        fields["dfi_kernels"] = [2 * grid_side // 3]
    return Layout(fields, grid_side, numbers)


def export_layout(fields: Mapping[str, Any], grid_side: int) -> Layout:
    """Returns the layout that the official code of a variant reads.

    Raises:
        UserError: No official code has such a variant.
    """
    sides, kernels = fields["sfe_sides"], fields["dfi_kernels"]
    if len(kernels) not in (0, 1, len(SCALES)):
        raise UserError(f"The official layout has a DFI of one or of {len(SCALES)} kernels, not of {len(kernels)}.")
    if kernels and fields["dfi_stride"] != 2:
        raise UserError(f"The official DFI has a stride of 2, not of {fields['dfi_stride']}.")
    counted = sides == list(range(2, 17, 2))  # the ablation of eight tokens at 224 px
    return Layout(fields, grid_side, {side: side // 2 if counted else side for side in sides})


def read_as(official: str) -> str:
    """Returns the tensor that the official forward pass reads where this one would be expected.

    With several DFI scales it uses the first scale's value projection for all of them.
    """
    return re.sub(rf"^value_projector_({'|'.join(SCALES)})\.", f"value_projector_{SCALES[0]}.", official)


def _kernel(name: str, side: int) -> OfficialTensor:
    return OfficialTensor(name, FullKernel.from_convolution, partial(FullKernel.to_convolution, side=side))


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


def _whole_set(sides: list[int], grid_side: int, *, centred: bool) -> list[int]:
    """Returns the paper's sides where some of them are there and others are not, otherwise the sides as they are."""
    if grid_side < 2 * PAPER_TOKENS:
        return sides
    paper = default_sides(grid_side, PAPER_TOKENS, centred=centred)
    has_gaps = set(sides) < set(paper) and sides != default_sides(grid_side, len(sides), centred=centred)
    return paper if has_gaps else sides


def _transformer_layout(shapes: Mapping[str, torch.Size], grid_side: int) -> Layout:
    """The ablation with transformers; its keys do not tell cropping from pooling, and cropping is assumed."""
    sides = sorted(int(name.removeprefix("query_")) for name in shapes if re.fullmatch(r"query_\d+", name))
    if not sides:
        raise UserError("The checkpoint has transformers (tfm_*) but no query_<side>: an unknown layout.")
    layers = [int(match[1]) for name in shapes if (match := re.match(r"tfm_\d+\.encoder\.layers\.(\d+)\.", name))]
    fields = {
        "sfe_maps": "cropping",
        "sfe_operator": "transformer",
        "sfe_sides": _whole_set(sides, grid_side, centred=True),
        "sfe_transformer_layers": max(layers, default=0) + 1,
        "dfi_kernels": [],
        "spatial_bias": "tfm_linear.1.bias" in shapes,
    }
    return Layout(fields, grid_side, {})
