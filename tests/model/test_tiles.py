"""The grid that an image is laid out on, and the order of its tokens, worked out by hand and by LLaVA's rules."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_sp.model.tiles import TileLayout, default_pinpoints

END = -1
"""Stands for the token that closes a row."""

SIZES = [
    (480, 640),
    (640, 480),
    (336, 336),
    (1, 1),
    (1, 5000),
    (5000, 1),
    (672, 672),
    (1008, 336),
    (335, 1009),
    (55, 88),
]


def layout(
    merge_type: str, pinpoints: list[list[int]], *, side: int = 4, grid: int = 2, spatial: int = 1
) -> TileLayout:
    return TileLayout(pinpoints, merge_type, tile_side=side, grid_side=grid, spatial_tokens=spatial)


def numbered(views: int, *, spatial: int = 1, patches: int = 4, ends: bool = False) -> torch.Tensor:
    """Tokens [views, T + N (+ 1), 1] that say where they come from: view 2's spatial token is 20, its patches 21 ..."""
    tokens = 10 * torch.arange(views)[:, None] + torch.arange(spatial + patches)
    return (torch.cat([tokens, torch.full((views, 1), END)], dim=1) if ends else tokens)[..., None]


WIDE = ([[4, 8]], 3)  # two tiles side by side: the patches 11 12 21 22, and below them 13 14 23 24
SQUARE = ([[8, 8]], 5)  # two rows of two tiles
ONE = ([[4, 4]], 2)  # one tile beside the base


@pytest.mark.parametrize(
    ("merge_type", "grids", "size", "expected"),
    [
        ("flat", WIDE, (4, 8), "0 1 2 3 4  10 11 12 13 14  20 21 22 23 24"),
        ("flat", ONE, (3, 1), "0 1 2 3 4  10 11 12 13 14"),
        ("spatial", WIDE, (4, 8), "0 10 20  1 2 3 4  11 12 21 22  13 14 23 24"),
        ("spatial", WIDE, (4, 4), "0 10 20  1 2 3 4  11 12 21 22  13 14 23 24"),
        ("spatial", ONE, (9, 9), "0 10  1 2 3 4  11 12  13 14"),
        ("spatial_unpad", WIDE, (4, 8), "0 10 20  1 2 3 4  11 12 21 22 -1  13 14 23 24 -1"),
        ("spatial_unpad", WIDE, (4, 4), "0 10 20  1 2 3 4  12 21 -1  14 23 -1"),
        ("spatial_unpad", ONE, (9, 9), "0 10  1 2 3 4  11 12 -1  13 14 -1"),
        ("spatial_unpad", SQUARE, (5, 10), "0 10 20 30 40  1 2 3 4  13 14 23 24 -1  31 32 41 42 -1"),
        ("spatial_unpad", SQUARE, (10, 5), "0 10 20 30 40  1 2 3 4  12 21 -1  14 23 -1  32 41 -1  34 43 -1"),
    ],
)
def test_the_order_of_the_tokens(merge_type: str, grids: Any, size: tuple[int, int], expected: str) -> None:
    pinpoints, views = grids
    ours = layout(merge_type, pinpoints)
    assert ours.count_views(*size) == views
    tokens = ours.join(numbered(views, ends=merge_type == "spatial_unpad"), *size).flatten().tolist()
    assert tokens == [int(token) for token in expected.split()]
    assert ours.count_tokens(*size) == len(tokens)


def test_without_spatial_tokens_it_is_llava_next() -> None:
    tokens = layout("spatial_unpad", [[4, 8]], spatial=0).join(numbered(3, spatial=0, ends=True), 4, 8)
    assert tokens.flatten().tolist() == [0, 1, 2, 3, 10, 11, 20, 21, END, 12, 13, 22, 23, END]


def test_the_default_grids_and_the_published_count() -> None:
    ours = layout("spatial_unpad", default_pinpoints(336), side=336, grid=24, spatial=6)
    assert {ours.tiles(*size) for size in [(672, 336), (336, 672), (672, 672), (1008, 336), (336, 1008)]} == {
        *((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
    }
    assert ours.count_tokens(480, 640) == 2370
    assert ours.tiles(336, 336) == (2, 1)  # one tile above the other fits as well as side by side: the first counts


def test_the_pages_table_of_counts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) x (\d+) \| (\d) x (\d) \| (\d+) \| (\d+) \|$", page, flags=re.MULTILINE)
    assert len(rows) > 5
    for width, height, columns, tile_rows, flat, unpadded in (map(int, row) for row in rows):
        kinds = ("flat", "spatial", "spatial_unpad")
        ours = [layout(kind, default_pinpoints(336), side=336, grid=24, spatial=6) for kind in kinds]
        assert ours[0].tiles(height, width) == (tile_rows, columns)
        assert [one.count_tokens(height, width) for one in ours] == [flat, flat, unpadded]


def test_rounding_is_llavas_where_transformers_differs() -> None:
    ours = layout("spatial_unpad", default_pinpoints(336), side=336, grid=24, spatial=0)
    assert ours.tiles(55, 88) == (2, 1)
    assert ours.count_tokens(55, 88) == 576 + 14 * (24 + 1)  # 55 * (24 / 88) is 14.999999999999998


def best_grid(height: int, width: int, pinpoints: list[list[int]]) -> list[int]:
    """LLaVA's choice: most pixels of the image shown, then least of the grid wasted, then the first in the list."""

    def rank(grid: list[int]) -> tuple[int, int]:
        scale = min(grid[0] / height, grid[1] / width)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return -shown, grid[0] * grid[1] - shown

    return min(pinpoints, key=rank)


def count_by_llavas_rules(height: int, width: int, pinpoints: list[list[int]], side: int, n: int, spatial: int) -> int:
    """Visual tokens with `spatial_unpad`, by removing padding on both sides of the longer axis in turn."""
    rows, columns = (length // side for length in best_grid(height, width, pinpoints))
    views, high, wide = 1 + rows * columns, rows * n, columns * n
    if width * high > height * wide:
        high -= 2 * ((high - int(height * (wide / width))) // 2)
    else:
        wide -= 2 * ((wide - int(width * (high / height))) // 2)
    return views * spatial + n * n + high * wide + high


@pytest.mark.parametrize("side,grid", [(336, 24), (384, 27), (48, 12)])
def test_counts_follow_llavas_rules_on_many_sizes(side: int, grid: int) -> None:
    draw = random.Random(0)  # noqa: S311 - sizes, no secrets
    sizes = [(round(10 ** draw.uniform(0, 3.7)), round(10 ** draw.uniform(0, 3.7))) for _ in range(2000)]
    more = [[side * high, side * wide] for high in range(1, 7) for wide in range(1, 7)]
    for pinpoints in (default_pinpoints(side), more):
        ours = layout("spatial_unpad", pinpoints, side=side, grid=grid, spatial=6)
        flat = layout("flat", pinpoints, side=side, grid=grid, spatial=6)
        for height, width in [*SIZES, *pinpoints, *sizes]:
            best = best_grid(height, width, pinpoints)
            assert ours.tiles(height, width) == (best[0] // side, best[1] // side)
            assert ours.count_tokens(height, width) == count_by_llavas_rules(height, width, pinpoints, side, grid, 6)
            assert flat.count_tokens(height, width) == (1 + best[0] * best[1] // side**2) * (6 + grid**2)


@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize("size", SIZES)
def test_the_count_is_the_length(merge_type: str, size: tuple[int, int]) -> None:
    ours = layout(merge_type, default_pinpoints(48), side=48, grid=12, spatial=3)
    views = torch.zeros(ours.count_views(*size), 3 + 144 + (merge_type == "spatial_unpad"), 2)
    assert ours.join(views, *size).shape == (ours.count_tokens(*size), 2)
