"""Tiles of a matrix: tall, narrow rectangles whose weights are coded as one cyclic sequence.

Rows are cut into as few tiles as the height allows, of heights that differ by at most one; columns into pairs (or
another width), and what is left over at the right into tiles of its own width. A tile is walked column by column.

Tall tiles keep the rounding's feedback: it reaches only columns outside the tile.

Shapes: C = candidates, R = rows, B = columns, N = tiles, T = weights of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class TileGroup:
    """Neighbouring tiles of one size: ``down`` × ``across`` of ``height`` × ``width`` weights from a corner on."""

    row: int
    down: int
    height: int
    column: int
    across: int
    width: int

    def area(self, x_CRB: Tensor) -> Tensor:
        """The part of the matrix that the group covers, a view."""
        return x_CRB[:, self._rows, self._columns]

    def take(self, x_CRB: Tensor) -> Tensor:
        """The group's weights as sequences (N, T)."""
        area = self.area(x_CRB)
        area = area.reshape(-1, self.down, self.height, self.across, self.width)
        return area.permute(0, 1, 3, 4, 2).reshape(-1, self.height * self.width)

    def put(self, values_NT: Tensor, into_CRB: Tensor) -> None:
        """Inverse of :meth:`take`, in place."""
        values = values_NT.reshape(-1, self.down, self.across, self.width, self.height).permute(0, 1, 4, 2, 3)
        area = self.area(into_CRB)
        area.copy_(values.reshape(area.shape))

    def strips(self, most: int) -> Iterator[TileGroup]:
        """The group from top to bottom in groups of at most so many weights, but of one row of tiles at least."""
        step = max(1, most // (self.height * self.across * self.width))
        for first in range(0, self.down, step):
            row = self.row + first * self.height
            yield replace(self, row=row, down=min(step, self.down - first))

    @property
    def _rows(self) -> slice:
        return slice(self.row, self.row + self.down * self.height)

    @property
    def _columns(self) -> slice:
        return slice(self.column, self.column + self.across * self.width)


def tile_groups(rows: int, columns: int, tile_rows: int, tile_columns: int) -> Iterator[TileGroup]:
    """At most four groups that cover a (rows, columns) matrix."""
    if not rows or not columns:
        return
    down = -(-rows // tile_rows)
    height, taller = divmod(rows, down)
    across, last = divmod(columns, tile_columns)
    for column, count, width in ((0, across, tile_columns), (across * tile_columns, 1, last)):
        if not count or not width:
            continue
        if taller:
            yield TileGroup(0, taller, height + 1, column, count, width)
        yield TileGroup(taller * (height + 1), down - taller, height, column, count, width)
