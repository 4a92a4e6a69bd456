"""The trellis codebook: long sequences coded together, a few bits a weight, near Shannon's bound.

A bit-shift trellis (QTIP, arXiv 2406.11235 §3.1) with tail-biting: each weight has one symbol of ``bits`` bits, and its
value is table[the last log2(states) bits of its tile's cyclic symbols]. The search is in ``viterbi``, the tables in
``trellis_tables``.

Tiles are tall (128 rows × 2 columns unless told otherwise): the feedback of rounding reaches only the columns outside
a tile, so a tile of many columns would give it away.

Shapes: C = candidates, R = rows, B = columns, N = tiles, T = weights of a tile, S = states.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compress_core.codebooks.base import Codebook
from compress_core.codebooks.tiles import TileGroup, tile_groups
from compress_core.codebooks.trellis_tables import gaussian_mse, trellis_table
from compress_core.codebooks.viterbi import states_of, viterbi

TILE_ROWS = 128
TILE_COLUMNS = 2
#: weights that are decoded at once: what is in between stays in the cache
_STRIP = 1 << 18


class TrellisCodebook(Codebook):
    """2 to 8 bits, 2^8 to 2^16 states; a matrix of any number of columns is a row of blocks."""

    name = "trellis"
    block = TILE_COLUMNS
    stages = 1

    def __init__(self, bits: int, device: torch.device, states: int = 4096, tile_rows: int = TILE_ROWS) -> None:
        if tile_rows < 1:
            raise ValueError(f"a tile has at least one row, not {tile_rows}")
        table_S = trellis_table(bits, states)
        self.bits = bits
        self.states = states
        self.tile_rows = tile_rows
        self.code_bits = (bits,) * TILE_COLUMNS
        self.gaussian_mse = gaussian_mse(bits, states)
        self.table_S = table_S.to(device)
        # no value occurs twice, so that the state, and with it the symbol, can be read off the value
        self._sorted_S, self._state_of = torch.sort(self.table_S)

    def nearest(self, x_CRB: Tensor, weight_CR: Tensor | None = None) -> Tensor:
        if x_CRB.ndim == 2:
            return self.nearest(x_CRB.unsqueeze(0), weight_CR)[:, 0]
        if x_CRB.device.type == "cpu":
            return self._nearest_on_cpu(x_CRB, weight_CR)
        values = torch.empty(x_CRB.shape, dtype=torch.float32, device=x_CRB.device)
        weight_CRB = None if weight_CR is None else weight_CR.unsqueeze(-1).expand(x_CRB.shape)
        for group in self._groups(x_CRB):
            weight_NT = None if weight_CRB is None else group.take(weight_CRB)
            symbols_NT = viterbi(group.take(x_CRB), self.table_S, self.bits, weight_NT)
            group.put(self._values(symbols_NT), values)
        return values.unsqueeze(0)

    def _nearest_on_cpu(self, x_CRB: Tensor, weight_CR: Tensor | None) -> Tensor:
        """The same in one kernel: on tiles so small, tensor operations cost as much as the search."""
        from compress_core.codebooks.viterbi import cpu  # numba is needed only where weights are compressed

        if weight_CR is None:
            weight_CR = x_CRB.new_ones(x_CRB.shape[:2])
        # columns next to each other, as rounding keeps them
        x_BCR = x_CRB.permute(2, 0, 1)
        values_BCR = cpu.nearest(x_BCR, weight_CR, self._groups(x_CRB), self.table_S, self.bits)
        return values_BCR.permute(1, 2, 0).unsqueeze(0)

    def unit_sums(self, x_CR: Tensor) -> Tensor:
        sums = torch.empty_like(x_CR)
        for group in self._groups(x_CR.unsqueeze(-1)):
            x_NT = group.take(x_CR.unsqueeze(-1))
            group.put(x_NT.sum(1, keepdim=True).expand_as(x_NT), sums.unsqueeze(-1))
        return sums

    def codes(self, parts_PRB: Tensor) -> Tensor:
        state_RB = self._state_of[torch.searchsorted(self._sorted_S, parts_PRB[0].contiguous())]
        return (state_RB & (2**self.bits - 1)).to(torch.int32)

    def decode(self, codes_RK: Tensor) -> Tensor:
        codes_CRK = codes_RK.unsqueeze(0)
        values = torch.empty(codes_CRK.shape, dtype=torch.float32, device=codes_RK.device)
        for group in self._groups(codes_CRK):
            if group.height <= self._reach:
                group.put(self._values(group.take(codes_CRK)), values)
                continue
            for strip in group.strips(_STRIP):
                state = self._states_in_place(codes_RK, strip).reshape(-1)
                area = strip.area(values)
                area.copy_(self.table_S.index_select(0, state).reshape(area.shape))
        return values[0]

    def strips(self, rows: int, most: int) -> Iterator[slice]:
        for group in tile_groups(rows, 1, self.tile_rows, 1):
            count = max(1, most // group.height)
            # so many rows would be cut into fewer, taller tiles if they were a matrix
            while -(-count * group.height // self.tile_rows) != count:
                count -= 1
            for first in range(0, group.down, count):
                last = min(first + count, group.down)
                yield slice(group.row + first * group.height, group.row + last * group.height)

    @property
    def _reach(self) -> int:
        """Symbols before a weight's own that its state is made of."""
        return -(-(self.states.bit_length() - 1) // self.bits) - 1

    def _states_in_place(self, codes_RK: Tensor, group: TileGroup) -> Tensor:
        """States of a group's weights where they lie in the matrix: six times as fast as tile by tile.

        Above the first weight of a column are, in its tile's cycle, the last ones of the column before.
        """
        area = group.area(codes_RK.unsqueeze(0))[0].reshape(group.down, group.height, group.across, group.width)
        before = area[:, group.height - self._reach :].roll(1, dims=3)
        run = torch.cat([before, area], dim=1).to(torch.int32)
        state = run[:, self._reach :].clone()
        for back in range(1, self._reach + 1):
            first = self._reach - back
            state.add_(run[:, first : first + group.height], alpha=1 << (back * self.bits))
        return state.bitwise_and_(self.states - 1)

    def _groups(self, x_CRB: Tensor) -> Iterator[TileGroup]:
        return tile_groups(x_CRB.shape[1], x_CRB.shape[2], self.tile_rows, TILE_COLUMNS)

    def _values(self, symbols_NT: Tensor) -> Tensor:
        state_NT = states_of(symbols_NT, self.bits, self.states.bit_length() - 1)
        return self.table_S[state_NT.reshape(-1)].reshape(state_NT.shape)
