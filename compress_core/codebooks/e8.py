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
from functools import cached_property

import torch
from torch import Tensor

from compress_core.codebooks.base import Codebook
from compress_core.codebooks.gather import gather

WIDTH = 8
#: (coordinates 5/2, coordinates 3/2) of each type of absolute-value vector; the others are 1/2
_E8P_TYPES = ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (2, 0), (0, 8))
_SHIFT = 0.25
#: what one unit of |y| is in keys
_KEY_UNIT = 2.0**16 * WIDTH
#: the 19 comparators that sort eight values in descending order
_SORTING_NETWORK = (
    *((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6)),
    *((0, 4), (3, 7), (1, 5), (2, 6), (1, 4), (3, 6), (2, 4), (3, 5), (3, 4)),
)
#: lattice units per standard deviation of the source, by bits
_UNITS = {2: 1.03, 3: 1.03, 4: 0.95}
#: residual stage: its units per unit of the first stage (a power-of-two-free constant is fine, it is exact in binary)
_RESIDUAL_UNITS = {3: 2.0, 4: 3.75}
#: mean squared error on a unit Gaussian by bits, measured on 10^6 weights
GAUSSIAN_MSE = {2: 0.0913, 3: 0.0298, 4: 0.00858}


def _signs(y: Tensor) -> Tensor:
    """±1 by sign, +1 at zero, without a boolean; |y| below 1e-20 counts as zero."""
    return (y * 1e20).add_(1).clamp_(-1, 1)


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
    """The 16-bit stage: nearest codeword, codes, values; lattice units.

    The search works on (8, rows), so that every operation is a vector one, in float32 throughout: comparisons that
    make booleans cost several times as much on the CPU. Absolute values become unique integer keys,
    ⌊|y|·2^16⌋·8 + coordinate < 2^24, exact in float32, so that ties cannot put two coordinates in one place.
    """

    bits = 16

    def __init__(self, device: torch.device) -> None:
        types_T8 = torch.tensor([[2.5] * f + [1.5] * t + [0.5] * (WIDTH - f - t) for f, t in _E8P_TYPES])
        smallest_T = types_T8[:, -1]
        even_T = 1.0 - 2.0 * (types_T8.sum(-1).to(torch.int64) & 1)
        # ½·score + const of a type as a linear map of: 8 sorted keys; the parity sign (±1) times the smallest key; Σx.
        # A wrong parity costs 2·a·|y| at the smallest coordinate: a·|y|·(1 − parity·even).
        score = torch.zeros(len(_E8P_TYPES), WIDTH + 2)
        score[:, :WIDTH] = types_T8 / _KEY_UNIT
        score[:, WIDTH - 1] -= smallest_T / _KEY_UNIT
        score[:, WIDTH] = smallest_T * even_T / _KEY_UNIT
        # −½‖y‖² differs between the two shifts by ±shift·Σx
        score[:, WIDTH + 1] = _SHIFT
        self._score_FT = score.T.contiguous().to(device)
        self._minus_half_norm_T = (-0.5 * types_T8.square().sum(-1)).to(device)
        self._even_T = even_T.to(device)
        # the k largest coordinates become ≥ 3/2 (5/2): keys at or above the k-th sorted one; none where k = 0
        for name, counts in (("3", [f + t for f, t in _E8P_TYPES]), ("5", [f for f, _ in _E8P_TYPES])):
            count_T = torch.tensor(counts, device=device)
            setattr(self, f"_row{name}_T", (count_T - 1).clamp(min=0))
            setattr(self, f"_offset{name}_T", torch.where(count_T == 0, 1.0, -1.0))
        self._index_81 = torch.arange(WIDTH, dtype=torch.float32, device=device)[:, None]
        table = e8p_table().to(device)
        self.table = table
        digits = (table - 0.5).to(torch.int64)
        self._ternary = 3 ** torch.arange(WIDTH, device=device)
        lookup = torch.full((3**WIDTH,), -1, dtype=torch.int64, device=device)
        lookup[(digits * self._ternary).sum(-1)] = torch.arange(256, device=device)
        self._lookup = lookup
        self._table_odd = table.sum(-1).to(torch.int64) & 1
        self._sign_weights = 2 ** torch.arange(7, device=device)

    _row3_T: Tensor
    _row5_T: Tensor
    _offset3_T: Tensor
    _offset5_T: Tensor

    def _keys(self, y_8R: Tensor) -> Tensor:
        return y_8R.abs().mul_(2.0**16).clamp_(max=2.0**21 - 1).floor_().mul_(WIDTH).add_(self._index_81)

    def nearest(self, x_R8: Tensor) -> Tensor:
        x_8R = x_R8.T.contiguous()
        rows = x_8R.shape[1]
        y_8S = torch.cat([x_8R - _SHIFT, x_8R + _SHIFT], dim=1)  # S = both shifts of all rows
        sorted_8 = list(self._keys(y_8S).unbind(0))
        for i, j in _SORTING_NETWORK:
            sorted_8[i], sorted_8[j] = torch.maximum(sorted_8[i], sorted_8[j]), torch.minimum(sorted_8[i], sorted_8[j])
        parity_S = _signs(y_8S).prod(0)
        lean_R = x_8R.sum(0)
        features_FS = torch.stack([*sorted_8, parity_S * sorted_8[-1], torch.cat([lean_R, -lean_R])])
        score_S, kind_S = torch.addmm(self._minus_half_norm_T, features_FS.T, self._score_FT).max(1)
        second_R = (score_S[rows:] > score_S[:rows]).to(torch.int64)
        column_R = torch.arange(rows, device=x_8R.device) + rows * second_R
        kind_R = kind_S[column_R]
        flat = features_FS.reshape(-1)
        three_R = flat[self._row3_T[kind_R] * (2 * rows) + column_R] + self._offset3_T[kind_R]
        five_R = flat[self._row5_T[kind_R] * (2 * rows) + column_R] + self._offset5_T[kind_R]
        smallest_R = flat[(WIDTH - 1) * 2 * rows + column_R]
        # 0 where the parity is right, −2 where the smallest coordinate's sign must flip
        flip_R = parity_S[column_R] * self._even_T[kind_R] - 1
        shift_R = _SHIFT - 2 * _SHIFT * second_R
        y_8R = x_8R - shift_R
        key_8R = self._keys(y_8R)
        sign_8R = (smallest_R + 1 - key_8R).clamp_(0, 1).mul_(flip_R).add_(1).mul_(_signs(y_8R))
        value_8R = (key_8R - three_R).clamp_(0, 1).add_((key_8R - five_R).clamp_(0, 1)).add_(0.5)
        return value_8R.mul_(sign_8R).add_(shift_R).T

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

    def nearest(self, x_CRB: Tensor, weight_CR: Tensor | None = None) -> Tensor:
        x = x_CRB.reshape(-1, WIDTH) * self._units
        first = self._first.nearest(x)
        stages = [first / self._units]
        if self._second is not None:
            second = self._second.nearest((x - first) * self._residual_units)
            stages.append(second / (self._residual_units * self._units))
        return torch.stack(stages).reshape(len(stages), *x_CRB.shape)

    def codes(self, parts_PRB: Tensor) -> Tensor:
        columns = [self._first.codes(_snap(parts_PRB[0] * self._units))]
        if self._second is not None:
            columns.append(self._second.codes(_snap(parts_PRB[1] * (self._residual_units * self._units))))
        return torch.stack(columns, dim=-1).to(torch.int32)

    def decode(self, codes_RK: Tensor) -> Tensor:
        value = gather(self._stage_values[0], codes_RK[:, 0])
        if self._second is not None:
            value += gather(self._stage_values[1], codes_RK[:, 1])
        return value

    @cached_property
    def _stage_values(self) -> tuple[Tensor, ...]:
        """Values of every code of each stage, (2^bits, 8): a packed model decodes the same codes again and again."""
        with torch.inference_mode(False):
            device = self._first.table.device
            first = self._first.decode(torch.arange(2**self._first.bits, device=device)) / self._units
            if self._second is None:
                return (first,)
            second = self._second.decode(torch.arange(2**self._second.bits, device=device))
            return first, second / (self._residual_units * self._units)


def _snap(value: Tensor) -> Tensor:
    """Back to the lattice's quarter grid after a division and a product."""
    return (value * 4).round() / 4
