"""Compares the spatial part as matrix products with the convolutions that it stands for, in one run.

Both forms hold the same weights, and their outputs are checked against each other before they are timed. At small
batches the cost is bound by reading the weights once from memory; the table says how near each form comes to that.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig

from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.spatial.detail_integrator import DetailAttention, DetailFeatureIntegrator
from llava_sp.model.spatial.feature_extractor import FullKernel, SpatialFeatureExtractor
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest difference of the two forms' outputs that rounding explains, relative to the largest output."""

SECONDS_PER_CELL = 20.0
"""A measurement is not repeated beyond this long."""

HEADER = "part  dtype  batch  pass              conv ms   matmul ms   ratio  conv/floor  matmul/floor  difference"


@dataclass(frozen=True)
class Part:
    """One part of the projector in both forms; each maps a grid [B, n, n, C] to its output.

    Attributes:
        name: `"SFE"` or `"DFI"`.
        matmul: The form that the model uses.
        conv: The same function with `torch.nn.functional.conv2d`.
        parameters: The parameters of both forms, for clearing their gradients.
        weight_bytes: Bytes of one form's weights.
    """

    name: str
    matmul: Callable[[torch.Tensor], torch.Tensor]
    conv: Callable[[torch.Tensor], torch.Tensor]
    parameters: list[nn.Parameter]
    weight_bytes: int


def build_sfe(config: LlavaSPConfig, device: torch.device, dtype: torch.dtype) -> Part:
    """Builds the SFE in both forms."""
    with device:
        sfe = SpatialFeatureExtractor(config).to(dtype)
    kernels = cast(list[FullKernel], list(sfe.operators))
    weights = [_convolution_weight(kernel) for kernel in kernels]

    def conv(grid: torch.Tensor) -> torch.Tensor:
        maps = sfe.make_maps(grid, [kernel.side for kernel in kernels])
        tokens = [F.conv2d(_channels_first(m), weight) for m, weight in zip(maps, weights, strict=True)]
        return torch.stack(tokens, dim=1).flatten(2)

    return Part("SFE", sfe, conv, [*sfe.parameters(), *weights], _bytes(sfe))


def build_dfi(config: LlavaSPConfig, device: torch.device, dtype: torch.dtype) -> Part:
    """Builds the DFI in both forms; its queries are fixed tokens, so that only the DFI itself is timed."""
    with device:
        dfi = DetailFeatureIntegrator(config).to(dtype)
        queries = torch.randn(1, config.num_spatial_tokens, config.sfe_channels, dtype=dtype)
    scales = cast(list[DetailAttention], list(dfi.scales))
    weights = [_convolution_weight(scale.detail) for scale in scales]

    def matmul(grid: torch.Tensor) -> torch.Tensor:
        return dfi(queries.expand(len(grid), -1, -1), grid)

    def conv(grid: torch.Tensor) -> torch.Tensor:
        tokens = queries.expand(len(grid), -1, -1)
        attended = []
        for scale, weight in zip(scales, weights, strict=True):
            details = F.conv2d(_channels_first(grid), weight, stride=scale.stride).flatten(2).transpose(1, 2)
            attended.append(
                F.scaled_dot_product_attention(scale.query(tokens), scale.key(details), scale.value(details))
            )
        return torch.cat([tokens, *attended], dim=-1)

    return Part("DFI", matmul, conv, [*dfi.parameters(), *weights], _bytes(dfi))


def measure_bandwidth(device: torch.device, size: int) -> float:
    """Returns the memory bandwidth in bytes per second: a copy of `size` bytes reads them once and writes them once."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device, repeats=7)


def best_seconds(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the shortest of up to `repeats` runs of `step` in seconds, after one that warms up.

    A run that is too slow to repeat, as a convolution's backward pass is on a CPU, is measured once, warm or not.
    """
    times: list[float] = []
    while len(times) <= repeats and sum(times) < SECONDS_PER_CELL:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


def compare(part: Part, grid: torch.Tensor, tolerance: float, bandwidth: float, repeats: int) -> Iterator[str]:
    """Times both forms on one batch, forward and then forward with backward; yields a line of results for each.

    The floor is the time to read the weights once, and to write their gradients once where there is a backward pass:
    the tower is frozen, so no gradient of the grid is needed.

    Raises:
        RuntimeError: The two forms disagree by more than `tolerance`.
    """
    with torch.inference_mode():
        expected, actual = part.conv(grid).float(), part.matmul(grid).float()
    difference = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:
        raise RuntimeError(f"The two forms of the {part.name} differ by {difference:.1e}, more than {tolerance:.0e}.")

    def forward(form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.inference_mode():
            form(grid)

    def forward_backward(form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        form(grid).sum().backward()
        for parameter in part.parameters:
            parameter.grad = None

    for name, step, accesses in (("forward", forward, 1), ("forward+backward", forward_backward, 2)):
        floor = accesses * part.weight_bytes / bandwidth
        conv, matmul = (
            best_seconds(functools.partial(step, form), grid.device, repeats) for form in (part.conv, part.matmul)
        )
        yield (
            f"{name:16}{1e3 * conv:10.2f}  {1e3 * matmul:10.2f}  {conv / matmul:5.1f}x"
            f"  {floor / conv:10.0%}  {floor / matmul:12.0%}  {difference:10.1e}"
        )


def main(argv: list[str]) -> None:
    """Runs the comparison and prints a line for each part, type, batch size and pass as it is measured."""
    options = parse(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")
    config = real_sizes() if not options.small else small_sizes()
    bandwidth = measure_bandwidth(device, 2**26 if options.small else 2**30)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    out(
        f"{place}, torch {torch.__version__}; {config.feature_channels} -> {config.sfe_channels} channels, "
        f"{config.grid_side} x {config.grid_side} grid, maps {config.sfe_sides}, detail kernels {config.dfi_kernels}"
    )
    out(f"Copy bandwidth {bandwidth / 1e9:.1f} GB/s. Times: best of up to {options.repeats} runs after a warm-up.")
    out("floor: reading the weights once (and writing their gradients once) at that bandwidth; 100% is at the floor.")
    out(HEADER)
    cells = 2 * len(options.dtypes) * len(options.batch_sizes) * 2
    with tqdm(total=cells, unit="cell", leave=False) as progress:
        for build in (build_sfe, build_dfi):
            for dtype in options.dtypes:
                torch.manual_seed(0)
                part = build(config, device, DTYPES[dtype])
                for batch in options.batch_sizes:
                    side = config.grid_side
                    grid = torch.randn(batch, side, side, config.feature_channels, device=device).to(DTYPES[dtype])
                    for line in compare(part, grid, TOLERANCES[dtype], bandwidth, options.repeats):
                        progress.clear()
                        out(f"{part.name:4}  {dtype:5}  {batch:5}  {line}")
                        progress.update()
                del part  # before the next is built: at real sizes one part in both forms takes 6 GB in fp32


def real_sizes() -> LlavaSPConfig:
    """The paper's sizes: CLIP ViT-L/14-336, 1024 -> 512 channels, six maps on a 24 x 24 grid, one detail kernel."""
    tower = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14)
    return LlavaSPConfig.from_variant("cropping", vision_config=tower, text_config=LlamaConfig())


def small_sizes() -> LlavaSPConfig:
    """The same shape of things at sizes that take milliseconds: 64 -> 32 channels, six maps on a 12 x 12 grid."""
    tower = CLIPVisionConfig(hidden_size=64, num_attention_heads=4, image_size=48, patch_size=4)
    return LlavaSPConfig.from_variant("cropping", vision_config=tower, text_config=LlamaConfig(), sfe_channels=32)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the benchmark's flags."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.bench projector", description=summary(__doc__))
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        help="images per step; on a CPU the convolutions' backward pass takes minutes beyond 1",
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="types (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="runs per measurement at most, after one to warm up")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device, help="where (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds")
    return parser.parse_args(argv)


def _channels_first(grid: torch.Tensor) -> torch.Tensor:
    """Copies [B, n, n, C] to [B, C, n, n]: on a CPU the convolutions run up to twice as fast on it as on a view."""
    return grid.permute(0, 3, 1, 2).contiguous()


def _convolution_weight(kernel: FullKernel) -> nn.Parameter:
    return nn.Parameter(FullKernel.to_convolution(kernel.weight.detach(), kernel.side).contiguous())


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
