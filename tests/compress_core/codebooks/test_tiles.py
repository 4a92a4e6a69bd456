"""Tiles cover a matrix once, whatever its shape."""

from __future__ import annotations

import pytest
import torch

from compress_core.codebooks.tiles import tile_groups


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (128, 2), (129, 2), (257, 5), (1000, 3), (7, 8), (384, 1)], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 16, 128])
def test_every_weight_lies_in_one_tile(shape: tuple[int, int], tile_rows: int) -> None:
    x = torch.arange(2 * shape[0] * shape[1]).reshape(2, *shape)
    out = torch.full_like(x, -1)
    seen = []
    heights = set()
    for group in tile_groups(*shape, tile_rows, 2):
        tiles = group.take(x)
        assert tiles.shape == (2 * group.down * group.across, group.height * group.width)
        heights.add(group.height)
        seen.append(tiles.flatten())
        group.put(tiles, out)
    assert torch.equal(torch.cat(seen).sort().values, x.flatten())
    assert torch.equal(out, x)
    assert max(heights) <= tile_rows
    assert max(heights) - min(heights) <= 1


def test_a_tile_is_walked_column_by_column() -> None:
    x = torch.arange(12).reshape(1, 3, 4)
    (group,) = tile_groups(3, 4, 8, 2)
    assert group.take(x).tolist() == [[0, 4, 8, 1, 5, 9], [2, 6, 10, 3, 7, 11]]


def test_nothing_has_no_tiles() -> None:
    assert list(tile_groups(0, 4, 128, 2)) == []
    assert list(tile_groups(4, 0, 128, 2)) == []
