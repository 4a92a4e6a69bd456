"""The trellis codebook: long sequences coded together, a few bits a weight, near Shannon's bound.

A bit-shift trellis (QTIP, arXiv 2406.11235 §3.1) with tail-biting: each weight has one symbol of ``bits`` bits, and its
value is table[the last log2(states) bits of its tile's cyclic symbols]. The search is in ``viterbi``, the tables in
``trellis_tables``.

Tiles are tall (128 rows × 2 columns unless told otherwise): the feedback of rounding reaches the columns outside a tile,
so a tile of many columns would give it away.

Shapes: C = candidates, R = rows, B = columns, N = tiles, T = weights of a tile, S = states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.codebooks.base import Codebook
from compress_core.codebooks.tiles import tile_groups
from compress_core.codebooks.trellis_tables import gaussian_mse, trellis_table
from compress_core.codebooks.viterbi import states_of, viterbi

TILE_ROWS = 128
TILE_COLUMNS = 2


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

    def nearest(self, x_CRB: Tensor) -> Tensor:
        x = x_CRB if x_CRB.ndim == 3 else x_CRB.unsqueeze(0)
        values = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for group in tile_groups(x.shape[1], x.shape[2], self.tile_rows, TILE_COLUMNS):
            group.put(self._values(viterbi(group.take(x), self.table_S, self.bits)), values)
        return values.reshape(1, *x_CRB.shape)

    def codes(self, parts_PRB: Tensor) -> Tensor:
        state_RB = self._state_of[torch.searchsorted(self._sorted_S, parts_PRB[0].contiguous())]
        return (state_RB & (2**self.bits - 1)).to(torch.int32)

    def decode(self, codes_RK: Tensor) -> Tensor:
        codes = codes_RK.unsqueeze(0)
        values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for group in tile_groups(codes.shape[1], codes.shape[2], self.tile_rows, TILE_COLUMNS):
            group.put(self._values(group.take(codes)), values)
        return values[0]

    def _values(self, symbols_NT: Tensor) -> Tensor:
        state_NT = states_of(symbols_NT, self.bits, self.states.bit_length() - 1)
        return self.table_S[state_NT.reshape(-1)].reshape(state_NT.shape)
