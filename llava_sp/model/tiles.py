"""AnyRes: the grid of tiles that an image is laid out on, and the order of its visual tokens (as in LLaVA-1.6).

An image is seen as several views, each the size of the tower's input: the whole image squeezed to a square (the base),
then the tiles of a grid, row by row, on which the image lies centred in its own proportions.

Shapes: T spatial tokens, N = n * n patches, H hidden size of the LLM.
"""

from dataclasses import dataclass

import torch
from transformers.image_processing_utils import select_best_resolution


def default_pinpoints(side: int) -> list[list[int]]:
    """Returns LLaVA-1.6's grids as `[height, width]` in pixels: 1 x 2, 2 x 1, 2 x 2, 3 x 1, 1 x 3 tiles (wide x high).

    Args:
        side: Side of a tile in pixels, the tower's.
    """
    return [[2 * side, side], [side, 2 * side], [2 * side, 2 * side], [side, 3 * side], [3 * side, side]]


@dataclass(frozen=True)
class TileLayout:
    """How the visual tokens of an image's views become one sequence.

    - `flat`: `[T + N]` of each view, the base first.
    - `spatial`: T spatial tokens of each view, the base first; then the base's patches; then those of the whole grid,
      row by row across its tiles.
    - `spatial_unpad`: the same, but the rows and columns of the grid that hold nothing but padding are left out, and
      each row is closed by one learned token.

    Attributes:
        pinpoints: Sizes `[height, width]` of the grids in pixels.
        merge_type: `"flat"`, `"spatial"` or `"spatial_unpad"`.
        tile_side: Side of a tile in pixels.
        grid_side: Side n of a tile in patches.
        spatial_tokens: Spatial tokens T of a view.
    """

    pinpoints: list[list[int]]
    merge_type: str
    tile_side: int
    grid_side: int
    spatial_tokens: int

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of the grid of tiles for an image of some pixels.

        That grid is taken which shows most of the image's pixels, and of such the one with the least padding.
        """
        rows, columns = select_best_resolution((height, width), self.pinpoints)
        return rows // self.tile_side, columns // self.tile_side

    def count_views(self, height: int, width: int) -> int:
        """Returns the number of an image's views: the base, and the tiles."""
        rows, columns = self.tiles(height, width)
        return 1 + rows * columns

    def count_tokens(self, height: int, width: int) -> int:
        """Returns the number of an image's visual tokens."""
        views, patches = self.count_views(height, width), self.grid_side**2
        if self.merge_type != "spatial_unpad":
            return views * (self.spatial_tokens + patches)
        rows, columns = self._filled(height, width)
        return views * self.spatial_tokens + patches + len(rows) * (len(columns) + 1)

    def join(self, views: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Lays out the visual tokens of an image of some pixels.

        Args:
            views: The projector's output for each view: [views, T + N, H], and for `"spatial_unpad"` one token more,
                the last: the one that closes a row.
            height: The image's height in pixels.
            width: Its width.

        Returns:
            The image's visual tokens, [`count_tokens(height, width)`, H].
        """
        if self.merge_type == "flat":
            return views.flatten(0, 1)
        n = self.grid_side
        spatial, patches, row_end = views.split_with_sizes(
            [self.spatial_tokens, n * n, views.shape[1] - self.spatial_tokens - n * n], dim=1
        )
        tiles = patches[1:].unflatten(0, self.tiles(height, width)).unflatten(2, (n, n))
        grid = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [rows * n, columns * n, H]
        if self.merge_type == "spatial_unpad":
            rows, columns = self._filled(height, width)
            grid = grid[rows.start : rows.stop, columns.start : columns.stop]
            grid = torch.cat([grid, row_end[:1].expand(len(grid), -1, -1)], dim=1)
        return torch.cat([spatial.flatten(0, 1), patches[0], grid.flatten(0, 1)])

    def _filled(self, height: int, width: int) -> tuple[range, range]:
        """Returns the rows and the columns of the whole grid's patches that are more than padding.

        The rounding is LLaVA's: of an image a hundred times as long as wide no column is left, and where a product
        should be 3 and comes out as 2.9999999, transformers' LLaVA-NeXT leaves out less.
        """
        tile_rows, tile_columns = self.tiles(height, width)
        rows, columns = tile_rows * self.grid_side, tile_columns * self.grid_side
        if width / height > columns / rows:
            padding = (rows - int(height * (columns / width))) // 2
            return range(padding, rows - padding), range(columns)
        padding = (columns - int(width * (rows / height))) // 2
        return range(rows), range(padding, columns - padding)
