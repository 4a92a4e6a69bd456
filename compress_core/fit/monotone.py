"""The non-parametric fallback: exact at measured cells, interpolated between them, never extrapolated.

Unmeasured cells of the grid (all measured b_q × all measured ranks) are filled from a pooled profile in log error
(matrix level + effect of the cell, partly its projection type's own) and then held between the matrix's own measured
neighbours, so that filled values never break the order "more bits, more rank, less error". Between grid points log
error is bilinear in b_q and ln(rank + 1), which preserves that order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError
from compress_core.fit.error_fit import ErrorFit
from compress_core.fit.leave_out import cross_validated
from compress_core.fit.observation import ErrorObservation, ObservationTable
from compress_core.fit.quality import fit_quality
from compress_core.matrix import MatrixKey

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_POLISH_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class MonotoneFit(ErrorFit):
    """Log errors on a full grid of (matrix, b_q, rank)."""

    #: position of each matrix along the first axis
    index: Mapping[MatrixKey, int] = field(default_factory=dict)
    #: (n_b,) rising, (n_r,) rising
    bits: FloatArray = field(default_factory=lambda: np.zeros(0))
    ranks: FloatArray = field(default_factory=lambda: np.zeros(0))
    #: (n, n_b, n_r) log error, measured or filled
    log_error: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    measured: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.bool_))
    zero_matrices: frozenset[MatrixKey] = frozenset()

    @property
    def n_parameters(self) -> None:
        return None

    def predict(self, matrix: MatrixKey, b_q: int, rank: int) -> float:
        if matrix in self.zero_matrices:
            return 0.0
        if matrix not in self.index:
            raise FitError(f"the fit knows no matrix {matrix}: measure at least one config of it")
        i = self.index[matrix]
        b0, b1, u = _bracket(self.bits, b_q, "b_q", np.asarray(self.bits))
        r0, r1, v = _bracket(self.ranks, rank, "rank", np.log1p(self.ranks))
        grid = self.log_error[i]
        low = (1 - u) * grid[b0, r0] + u * grid[b1, r0]
        high = (1 - u) * grid[b0, r1] + u * grid[b1, r1]
        return math.exp((1 - v) * low + v * high)

    def is_measured(self, matrix: MatrixKey, b_q: int, rank: int) -> bool:
        """True where ``predict`` returns a measurement."""
        if matrix not in self.index or b_q not in self.bits or rank not in self.ranks:
            return False
        i = self.index[matrix]
        return bool(self.measured[i, np.searchsorted(self.bits, b_q), np.searchsorted(self.ranks, rank)])


def _bracket(axis: FloatArray, value: int, name: str, coordinate: FloatArray) -> tuple[int, int, float]:
    """Neighbours on an axis and the position between them, 0 … 1, in the axis's interpolation coordinate."""
    if not axis[0] <= value <= axis[-1]:
        raise FitError(
            f"{name} {value} lies outside the measured {axis[0]:g} … {axis[-1]:g}: the non-parametric fit only "
            "interpolates; measure it or use a parametric fit"
        )
    right = int(np.searchsorted(axis, value))
    if axis[right] == value:
        return right, right, 0.0
    here = math.log1p(value) if name == "rank" else float(value)
    left = right - 1
    return left, right, (here - float(coordinate[left])) / float(coordinate[right] - coordinate[left])


def _grid_of(table: ObservationTable) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Axes and the (n, n_b, n_r) weighted mean log error, NaN where not measured."""
    bits, b = np.unique(table.bits, return_inverse=True)
    ranks, r = np.unique(table.rank, return_inverse=True)
    shape = (len(table.matrices), len(bits), len(ranks))
    total, weight = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (table.row, b, r), table.weight * table.y)
    np.add.at(weight, (table.row, b, r), table.weight)
    return bits, ranks.astype(np.float64), np.divide(total, weight, out=np.full(shape, np.nan), where=weight > 0)


def _pooled_profile(grid: FloatArray, types: IntArray) -> FloatArray:
    """(n, n_b, n_r) prediction of every cell: matrix level + effect of the cell in the matrix's projection type.

    Effects are least squares by alternation over all matrices; each type's own departure from them is added as far as
    it exceeds what scatter within the type explains. A cell that no matrix has measured gets, type by type, effect of
    its bits + effect of its rank.
    """
    known = np.isfinite(grid)
    y = np.where(known, grid, 0.0)
    n_matrix, n_cell = known.sum(axis=(1, 2)), known.sum(axis=0)
    level, cell = np.zeros(len(grid)), np.zeros(grid.shape[1:])
    for _ in range(_POLISH_ROUNDS):
        level_new = np.where(known, y - cell, 0.0).sum(axis=(1, 2)) / n_matrix
        cell = np.where(known, y - level_new[:, None, None], 0.0).sum(axis=0) / np.maximum(n_cell, 1)
        moved = float(np.abs(level_new - level).max())
        level = level_new
        if moved < 1e-12:
            break
    effects = cell + _departures(np.where(known, y - level[:, None, None] - cell, 0.0), known, types)
    own = np.stack([_fill_two_way(effect, n_cell > 0) for effect in effects])[types]
    level = np.where(known, y - own, 0.0).sum(axis=(1, 2)) / n_matrix
    return level[:, None, None] + own


def _departures(residual: FloatArray, known: NDArray[np.bool_], types: IntArray) -> FloatArray:
    """(G, n_b, n_r) mean residual of each type and cell, shrunk to zero by the scatter within (method of moments)."""
    n_types = int(types.max()) + 1
    n, total = np.zeros((n_types, *residual.shape[1:])), np.zeros((n_types, *residual.shape[1:]))
    np.add.at(n, types, known)
    np.add.at(total, types, residual)
    mean = np.divide(total, n, out=np.zeros_like(total), where=n > 0)
    freedom = float(np.maximum(n - 1, 0).sum())
    if not freedom:
        return np.zeros_like(mean)
    within = float((np.where(known, residual - mean[types], 0.0) ** 2).sum()) / freedom
    error = np.divide(within, n, out=np.full_like(mean, np.inf), where=n > 0)
    between = max(float((mean[n > 0] ** 2 - error[n > 0]).mean()), 0.0)
    weight = np.divide(between, between + error, out=np.zeros_like(mean), where=between + error > 0)
    return mean * weight


def _fill_two_way(cell: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """Fill unknown cells of a two-way table by its additive fit (row effect + column effect)."""
    if known.all():
        return cell
    n_b, n_r = cell.shape
    at_b, at_r = np.nonzero(known)
    design = np.zeros((len(at_b), n_b + n_r))
    design[np.arange(len(at_b)), at_b] = 1
    design[np.arange(len(at_b)), n_b + at_r] = 1
    effect = np.linalg.lstsq(design, cell[known], rcond=None)[0]
    return np.where(known, cell, effect[:n_b, None] + effect[None, n_b:])


def _between_neighbours(grid: FloatArray, filled: FloatArray) -> FloatArray:
    """Hold filled cells between measured ones: at most those with fewer bits and rank, at least those with more."""
    known = np.isfinite(grid)
    upper = np.where(known, grid, np.inf)
    lower = np.where(known, grid, -np.inf)
    for axis in (1, 2):
        upper = np.minimum.accumulate(upper, axis=axis)
        lower = np.flip(np.maximum.accumulate(np.flip(lower, axis=axis), axis=axis), axis=axis)
    # noisy measurements can contradict each other; then stay between the two
    held = np.clip(filled, np.minimum(lower, upper), np.maximum(lower, upper))
    return np.where(known, grid, held)


def fit_monotone(observations: Iterable[ErrorObservation], *, cross_validate: bool = True) -> MonotoneFit:
    """Interpolate each matrix's measured cells; unmeasured ones borrow the pooled profile.

    Cells measured more than once are averaged in log.

    Raises:
        FitError: no measurement with a positive error.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    given: Sequence[ErrorObservation] = list(observations)
    table = ObservationTable.collect(given)
    bits, ranks, grid = _grid_of(table)
    _, types = np.unique([key.projection for key in table.matrices], return_inverse=True)
    log_error = _between_neighbours(grid, _pooled_profile(grid, types))
    cell = np.searchsorted(bits, table.bits), np.searchsorted(ranks, table.rank)
    predicted = log_error[table.row, cell[0], cell[1]]
    residuals = np.full(table.n_given, np.nan)
    residuals[table.source] = table.y - predicted
    fit = MonotoneFit(
        form="monotone",
        parameters=(),
        scales={},
        quality=fit_quality(table, predicted),
        residuals=residuals,
        n_observations=table.n_given,
        n_zero=table.n_zero,
        index={key: i for i, key in enumerate(table.matrices)},
        bits=bits,
        ranks=ranks,
        log_error=log_error,
        measured=np.isfinite(grid),
        zero_matrices=frozenset(table.zero_matrices),
    )
    if not cross_validate:
        return fit
    return cross_validated(fit, given, lambda rest: fit_monotone(rest, cross_validate=False))
