"""Lattice codebooks on E8, eight weights at a time: 2, 3 and 4 bits.

2 bits follow the structure of QuIP#'s E8P (arXiv 2402.04396 §4): a codeword is an element of D̂8 (half-odd
coordinates with an even sum), shifted by ±1/4. Its absolute values come from a table of 256, seven signs are free,
the eighth follows from the parity, one bit is the shift: 16 bits for 8 weights.

The table here is our own choice: 227 vectors of squared norm at most 10, the 28 with two coordinates 5/2, and the
one with all coordinates 3/2. It is closed under permutations, so the nearest codeword needs no search over entries:
sort the absolute values once, and score nine *types* of vectors on the sorted values. A forced sign flip costs least
at the smallest coordinate, for every type.

3 bits add a residual stage of 256 vectors (the 240 roots of E8 and the 16 vectors ±2·e_i), 4 bits a second E8P
stage, each with its own residual scale.

Shapes: R = rows, P = stages, K = codes a block, T = types.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from compress_core.codebooks.base import Codebook

WIDTH = 8
#: (coordinates 5/2, coordinates 3/2) of each type of absolute-value vector; the others are 1/2
_E8P_TYPES = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (2, 0), (0, 8))
_SHIFT = 0.25
#: lattice units per standard deviation of the source, by bits
_UNITS = {2: 1.03, 3: 1.03, 4: 0.95}
#: residual stage: its units per unit of the first stage (a power-of-two-free constant is fine, it is exact in binary)
_RESIDUAL_UNITS = {3: 2.0, 4: 3.75}
#: mean squared error on a unit Gaussian by bits, measured on 10^6 weights
GAUSSIAN_MSE = {2: 0.0913, 3: 0.0298, 4: 0.00858}


def e8p_table() -> Tensor:
    """The 256 absolute-value vectors (256, 8) float32, ordered by type, then lexicographically."""
    rows: list[tuple[float, ...]] = []
    for fives, threes in _E8P_TYPES:
        vector = [2.5] * fives + [1.5] * threes + [0.5] * (WIDTH - fives - threes)
        rows.extend(sorted(set(_permutations(vector))))
    return torch.tensor(rows, dtype=torch.float32)


def _permutations(vector: list[float]) -> list[tuple[float, ...]]:
    """Distinct permutations by choosing places for the large coordinates (8! would be slow at import)."""
    large = [v for v in vector if v != 0.5]
    found = set()
    for places in itertools.permutations(range(WIDTH), len(large)) if len(large) < WIDTH else [tuple(range(WIDTH))]:
        row = [0.5] * WIDTH
        for place, value in zip(places, large, strict=True):
            row[place] = value
        found.add(tuple(row))
    return list(found)


class _E8P:
    """The 16-bit stage: nearest codeword, codes, values; lattice units."""

    bits = 16

    def __init__(self, device: torch.device) -> None:
        self.types_T8 = torch.tensor(
            [[2.5] * f + [1.5] * t + [0.5] * (WIDTH - f - t) for f, t in _E8P_TYPES], dtype=torch.float32, device=device
        )
        self._types_8T = self.types_T8.T.contiguous()
        self._half_norm_T = 0.5 * self.types_T8.square().sum(-1)
        self._odd_T = self.types_T8.sum(-1).to(torch.int64) & 1
        # cost of moving the smallest coordinate across zero: 2·a·|y| with a = 1/2, or 3/2 where all are 3/2
        self._flip_T = 2 * self.types_T8[:, -1]
        table = e8p_table().to(device)
        self.table = table
        digits = (table - 0.5).to(torch.int64)
        self._ternary = 3 ** torch.arange(WIDTH, device=device)
        lookup = torch.full((3**WIDTH,), -1, dtype=torch.int64, device=device)
        lookup[(digits * self._ternary).sum(-1)] = torch.arange(256, device=device)
        self._lookup = lookup
        self._table_odd = table.sum(-1).to(torch.int64) & 1
        self._sign_weights = 2 ** torch.arange(7, device=device)

    def nearest(self, x_R8: Tensor) -> Tensor:
        rows = x_R8.shape[0]
        n_types = len(_E8P_TYPES)
        y_2R8 = torch.stack([x_R8 - _SHIFT, x_R8 + _SHIFT])
        sorted_2R8, order_2R8 = torch.sort(y_2R8.abs(), dim=-1, descending=True)
        negatives = (y_2R8 < 0).sum(-1, keepdim=True)
        odd_2RT = ((negatives + self._odd_T) & 1).to(torch.float32)
        score_2RT = sorted_2R8 @ self._types_8T - self._half_norm_T
        score_2RT -= odd_2RT * (self._flip_T * sorted_2R8[..., -1:])
        # −½‖y‖² differs between the two shifts by ∓½·shift·2·Σx
        lean = _SHIFT * x_R8.sum(-1, keepdim=True)
        score_RT = torch.cat([score_2RT[0] + lean, score_2RT[1] - lean], dim=-1)
        best = score_RT.argmax(-1)
        second = best >= n_types
        kind = best - n_types * second
        pick = second[:, None]
        y = torch.where(pick, y_2R8[1], y_2R8[0])
        order = torch.where(pick, order_2R8[1], order_2R8[0])
        absolute = torch.empty_like(x_R8).scatter_(-1, order, self.types_T8[kind])
        value = torch.copysign(absolute, y)
        odd = torch.where(pick, odd_2RT[1], odd_2RT[0]).gather(-1, kind[:, None])
        last = order[:, -1:]
        # y = −0.0 counts as positive above, so the sign of a zero must be settled before the flip
        value = torch.where(y == 0, absolute, value)
        value.scatter_(-1, last, value.gather(-1, last) * (1 - 2 * odd))
        return value + torch.where(pick, -_SHIFT, _SHIFT).expand(rows, WIDTH)

    def codes(self, value_R8: Tensor) -> Tensor:
        """(R,) int64 in [0, 65536): table entry · 256 + 7 signs · 2 + shift."""
        # ±a ∈ {…, −1/2, 1/2, 3/2, …}: 4·value mod 4 is 3 for shift +1/4 and 1 for −1/4
        minus = torch.remainder((4 * value_R8[:, 0]).round().to(torch.int64), 4) == 1
        signed = value_R8 - torch.where(minus, -_SHIFT, _SHIFT)[:, None]
        digits = (signed.abs() - 0.5).round().to(torch.int64)
        entry = self._lookup[(digits * self._ternary).sum(-1)]
        signs = ((signed[:, :7] < 0).to(torch.int64) * self._sign_weights).sum(-1)
        return (entry << 8) | (signs << 1) | minus.to(torch.int64)

    def decode(self, code_R: Tensor) -> Tensor:
        entry = code_R >> 8
        negative_R7 = ((code_R[:, None] >> 1) & self._sign_weights) != 0
        odd = (negative_R7.sum(-1) + self._table_odd[entry]) & 1
        negative = torch.cat([negative_R7, (odd == 1)[:, None]], dim=-1)
        absolute = self.table[entry]
        shift = torch.where((code_R & 1) == 1, -_SHIFT, _SHIFT)
        return torch.where(negative, -absolute, absolute) + shift[:, None]


class _Roots:
    """The 8-bit residual stage: 240 roots of E8 (squared norm 2) and ±2·e_i; lattice units."""

    bits = 8

    def __init__(self, device: torch.device) -> None:
        rows: list[list[float]] = []
        for i, j in itertools.combinations(range(WIDTH), 2):
            for a, b in itertools.product((1.0, -1.0), repeat=2):
                row = [0.0] * WIDTH
                row[i], row[j] = a, b
                rows.append(row)
        for signs in itertools.product((0.5, -0.5), repeat=WIDTH):
            if sum(s < 0 for s in signs) % 2 == 0:
                rows.append(list(signs))
        for i in range(WIDTH):
            for a in (2.0, -2.0):
                row = [0.0] * WIDTH
                row[i] = a
                rows.append(row)
        self.table = torch.tensor(rows, dtype=torch.float32, device=device)
        self._kinds = torch.tensor(
            [[1.0, 1, 0, 0, 0, 0, 0, 0], [0.5] * WIDTH, [2.0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float32, device=device
        )
        # doubled coordinates lie in −4 … 4
        self._nonary = 9 ** torch.arange(WIDTH, device=device)
        keys = self._keys(self.table)
        self._sorted_keys, self._entry_of = torch.sort(keys)

    def _keys(self, value_R8: Tensor) -> Tensor:
        return (((2 * value_R8).round().to(torch.int64) + 4) * self._nonary).sum(-1)

    def nearest(self, x_R8: Tensor) -> Tensor:
        sorted_R8, order = torch.sort(x_R8.abs(), dim=-1, descending=True)
        odd = ((x_R8 < 0).sum(-1) & 1).to(torch.float32)
        pair = sorted_R8[:, 0] + sorted_R8[:, 1] - 1
        halves = 0.5 * sorted_R8.sum(-1) - odd * sorted_R8[:, -1] - 1
        axis = 2 * sorted_R8[:, 0] - 2
        kind = torch.stack([pair, halves, axis]).argmax(0)
        absolute = torch.empty_like(x_R8).scatter_(-1, order, self._kinds[kind])
        value = torch.where(x_R8 < 0, -absolute, absolute)
        last = order[:, -1:]
        flip = (1 - 2 * odd * (kind == 1))[:, None]
        return value.scatter_(-1, last, value.gather(-1, last) * flip)

    def codes(self, value_R8: Tensor) -> Tensor:
        return self._entry_of[torch.searchsorted(self._sorted_keys, self._keys(value_R8))]

    def decode(self, code_R: Tensor) -> Tensor:
        return self.table[code_R]


class E8Codebook(Codebook):
    """E8P at 2 bits; with a residual stage at 3 (E8 roots) and 4 bits (E8P again)."""

    name = "e8"
    block = WIDTH

    def __init__(self, bits: int, device: torch.device) -> None:
        if bits not in GAUSSIAN_MSE:
            raise ValueError(f"the e8 codebook has 2, 3 or 4 bits, not {bits}")
        self.bits = bits
        self.gaussian_mse = GAUSSIAN_MSE[bits]
        self._units = _UNITS[bits]
        self._first = _E8P(device)
        self._second: _E8P | _Roots | None = None
        if bits == 3:
            self._second = _Roots(device)
        elif bits == 4:
            self._second = self._first
        self._residual_units = _RESIDUAL_UNITS.get(bits, 1.0)
        self.stages = 1 if self._second is None else 2
        self.code_bits = (16,) if self._second is None else (16, self._second.bits)

    def nearest(self, x_RB: Tensor) -> Tensor:
        x = x_RB * self._units
        first = self._first.nearest(x)
        if self._second is None:
            return (first / self._units).unsqueeze(0)
        second = self._second.nearest((x - first) * self._residual_units)
        return torch.stack([first / self._units, second / (self._residual_units * self._units)])

    def codes(self, parts_PRB: Tensor) -> Tensor:
        columns = [self._first.codes(_snap(parts_PRB[0] * self._units))]
        if self._second is not None:
            columns.append(self._second.codes(_snap(parts_PRB[1] * (self._residual_units * self._units))))
        return torch.stack(columns, dim=-1).to(torch.int32)

    def decode(self, codes_RK: Tensor) -> Tensor:
        codes = codes_RK.long()
        value = self._first.decode(codes[:, 0]) / self._units
        if self._second is not None:
            value = value + self._second.decode(codes[:, 1]) / (self._residual_units * self._units)
        return value


def _snap(value: Tensor) -> Tensor:
    """Back to the lattice's quarter grid after a division and a product."""
    return (value * 4).round() / 4
