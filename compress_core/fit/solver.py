"""Robust fit of a shape: a free scale a matrix, parameters of each projection type, partially pooled.

Given θ the log scales are means within the matrices, so only θ is searched (variable projection, Golub & Pereyra
1973). Residuals beyond 1.345 robust standard deviations are cut to that (Huber 1981, §7.8: modified residuals). Each
step linearises the shape in every type and lets ``pooling`` combine them (Lindstrom & Bates 1990).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from compress_core.fit.noise import EXACT, MAD_TO_SIGMA
from compress_core.fit.observation import ObservationTable
from compress_core.fit.pooling import Pooled, pool
from compress_core.fit.shapes import Shape, ShapeCells

FloatArray = NDArray[np.float64]
#: "partial": types shrunk to what they share; "complete": one θ for all; "none": each type alone
Pooling = Literal["partial", "complete", "none"]
_HUBER = 1.345
_MOST_STEPS = 80
_PLAIN_STEPS = 4
#: the largest change of a log error within one step
_LONGEST_STEP = 1.0
_MOST_HALVINGS = 12
#: a change of a log error in units of its standard deviation, and of the log likelihood, that ends the search
_NOTICEABLE = 1e-2
#: standard deviation between types from which the first estimate starts
_FIRST_SPREAD = 0.3
#: "none" as a spread that shrinks nothing and still inverts
_UNPOOLED_SPREAD = 1e6


@dataclass(frozen=True, eq=False, slots=True)
class Solution:
    """What the solver found, for the types in the order of ``types``."""

    types: tuple[str, ...]
    #: (G, p)
    theta: FloatArray
    #: their errors and what they share
    pooled: Pooled
    #: (n,) the solver's log scales
    log_scale: FloatArray
    #: (m,) predicted log error
    predicted: FloatArray
    #: residual degrees of freedom
    freedom: int
    #: robust standard deviation of a log error of weight 1
    sigma: float
    converged: bool


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """Where a fold of a cross-validation starts: at the whole fit."""

    types: tuple[str, ...]
    common: FloatArray
    theta: FloatArray
    spread: FloatArray

    @classmethod
    def at(cls, found: Solution) -> Start:
        return cls(found.types, found.pooled.common, found.theta, found.pooled.spread)


class _Projected:
    """Log errors, log shapes and their derivatives with the scales projected out."""

    def __init__(self, shape: Shape, table: ObservationTable, cells: ShapeCells, weight: FloatArray) -> None:
        self.shape, self.table, self.cells, self.weight = shape, table, cells, weight
        self.root = np.sqrt(weight)
        self.per_matrix = np.bincount(table.row, weights=weight)
        projection = np.array([key.projection for key in table.matrices])
        self.types: tuple[str, ...] = tuple(np.unique(projection).tolist())
        self.group = np.searchsorted(self.types, projection)[table.row]

    def mean(self, x: FloatArray) -> FloatArray:
        """(n,) weighted mean of x within each matrix."""
        return np.asarray(np.bincount(self.table.row, weights=self.weight * x) / self.per_matrix)

    def residual(self, state: _State) -> FloatArray:
        """(m,) log(measured / predicted)."""
        return np.asarray(self.table.y - state.log_g - state.scale[self.table.row])

    def moved(self, state: _State, target: Pooled, share: float, pseudo: FloatArray) -> _State:
        """The state after a share of the step to ``target``, the scales following the cut residuals."""
        theta = state.theta + share * (target.theta - state.theta)
        common = state.common + share * (target.common - state.common)
        log_g, slope = self.shape.log_shape(theta[self.group], self.cells)
        return _State(common, theta, state.scale + self.mean(pseudo - (log_g - state.log_g)), log_g, slope)

    def centred(self, x: FloatArray) -> FloatArray:
        """(m,) or (m, p): x minus its mean within the matrix."""
        if x.ndim == 1:
            return np.asarray(x - self.mean(x)[self.table.row])
        return np.stack([self.centred(column) for column in x.T], axis=1)

    def by_type(self, x: FloatArray) -> FloatArray:
        """(G, …) sums of (m, …) over the types."""
        flat = x.reshape(len(x), -1)
        sums = [np.bincount(self.group, weights=column, minlength=len(self.types)) for column in flat.T]
        return np.asarray(np.stack(sums, axis=1).reshape(len(self.types), *x.shape[1:]), dtype=np.float64)

    def least_squares(self) -> FloatArray:
        """One θ for all types that minimises the squares, from the best of the shape's starts."""
        mean, precision = self.shape.prior()
        held = np.flatnonzero(precision)
        # the prior weighs as much as it would at a noise of a tenth of a nat
        pull = 0.1 * np.sqrt(precision[held])

        def residual(theta: FloatArray) -> FloatArray:
            log_g, _ = self.shape.log_shape(theta, self.cells)
            return np.concatenate([self.root * self.centred(self.table.y - log_g), pull * (theta - mean)[held]])

        def jacobian(theta: FloatArray) -> FloatArray:
            _, slope = self.shape.log_shape(theta, self.cells)
            return np.concatenate([-self.root[:, None] * self.centred(slope), pull[:, None] * np.eye(len(theta))[held]])

        found = (
            least_squares(residual, np.asarray(start), jac=jacobian, method="lm", x_scale="jac")
            for start in self.shape.starts()
        )
        return np.asarray(min(found, key=lambda result: result.cost).x)


@dataclass(frozen=True, eq=False, slots=True)
class _Scatter:
    """How residuals of weight 1 scatter, and what Huber's function makes of them."""

    sigma: float
    #: share of the residuals that are not cut
    inside: float
    #: variance of a log error of weight 1 as the estimate sees it (Huber 1981, eq. 7.6.5)
    variance: float

    @classmethod
    def of(cls, standard: FloatArray, freedom: int, *, robust: bool) -> _Scatter:
        """Of (m,) residuals times the roots of their weights; not robust: none is cut."""
        if not robust:
            variance = max(float((standard**2).sum()) / freedom, EXACT**2)
            return cls(max(float(np.abs(standard).max()), EXACT), 1.0, variance)
        sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(standard))) * np.sqrt(len(standard) / freedom), EXACT)
        inside = max(float((np.abs(standard) <= _HUBER * sigma).mean()), 0.5)
        cut = np.clip(standard, -_HUBER * sigma, _HUBER * sigma)
        return cls(sigma, inside, max(float((cut**2).sum()) / freedom / inside**2, EXACT**2))

    def cut(self, standard: FloatArray) -> FloatArray:
        return np.clip(standard, -_HUBER * self.sigma, _HUBER * self.sigma)

    def loss(self, standard: FloatArray) -> float:
        """Huber's loss as a negative log likelihood."""
        z = np.abs(standard) / self.sigma
        loss = np.where(z <= _HUBER, z**2 / 2, _HUBER * (z - _HUBER / 2)).sum()
        return float(loss) * self.sigma**2 / (self.variance * self.inside)


@dataclass(frozen=True, eq=False, slots=True)
class _State:
    """Where the search stands."""

    common: FloatArray
    theta: FloatArray
    scale: FloatArray
    log_g: FloatArray
    slope: FloatArray


def _apart(state: _State, spread: FloatArray, prior: tuple[FloatArray, FloatArray]) -> float:
    """Negative log density of the types around what they share, and of that under its prior."""
    between = ((state.theta - state.common) ** 2 / np.maximum(spread, 1e-12)).sum() / 2
    return float(between + (prior[1] * (state.common - prior[0]) ** 2).sum() / 2)


def solve(
    shape: Shape,
    table: ObservationTable,
    cells: ShapeCells,
    weight: FloatArray,
    *,
    pooling: Pooling = "partial",
    start: Start | None = None,
) -> Solution:
    """Fit a shape to a checked table.

    Args:
        cells: (m,) where each observation lies.
        weight: (m,) 1/variance of each log error, up to a common factor.
        start: a fit to begin with; types that it does not know begin at its common parameters.
    """
    problem = _Projected(shape, table, cells, weight)
    estimate = pooling == "partial" and len(problem.types) > 1
    theta, spread = _begin(problem, start, pooling)
    log_g, slope = shape.log_shape(theta[problem.group], cells)
    # a median is not led away by an outlier
    state = _State(theta.mean(axis=0), theta, _medians(table.y - log_g, table.row), log_g, slope)
    freedom = max(len(table.y) - len(table.matrices) - theta.shape[1], 1)
    converged = False
    for number in range(_MOST_STEPS):
        standard = problem.root * problem.residual(state)
        # squares first: a type that differs from the common start must not be taken for outliers
        robust = start is not None or number >= _PLAIN_STEPS
        scatter = _Scatter.of(standard, freedom, robust=robust)
        pseudo = scatter.cut(standard) / problem.root
        centred = problem.centred(state.slope)
        normal = problem.by_type(centred[:, :, None] * centred[:, None, :] * weight[:, None, None]) / scatter.variance
        gradient = problem.by_type(centred * (weight * problem.centred(pseudo))[:, None])
        says = np.einsum("gij,gj->gi", normal, state.theta) + gradient / (scatter.variance * scatter.inside)
        pooled = pool(normal, says, spread, prior=shape.prior(), estimate=estimate)
        spread = pooled.spread
        step = pooled.theta - state.theta
        longest = float(np.abs(problem.centred((state.slope * step[problem.group]).sum(axis=1))).max())
        now = scatter.loss(standard) + _apart(state, spread, shape.prior())
        share = min(1.0, _LONGEST_STEP / max(longest, 1e-300))
        for _ in range(_MOST_HALVINGS):
            tried = problem.moved(state, pooled, share, pseudo)
            after = scatter.loss(problem.root * problem.residual(tried)) + _apart(tried, spread, shape.prior())
            if after <= now + 1e-9 * abs(now):
                break
            share /= 2
        state = tried
        # no parameter can move by a noticeable part of its error any more
        if robust and longest < _NOTICEABLE * scatter.sigma and abs(now - after) < _NOTICEABLE:
            converged = True
            break
    predicted = state.scale[table.row] + state.log_g
    return Solution(problem.types, state.theta, pooled, state.scale, predicted, freedom, scatter.sigma, converged)


def _begin(problem: _Projected, start: Start | None, pooling: Pooling) -> tuple[FloatArray, FloatArray]:
    """(G, p) parameters and (p,) spread to start from."""
    n_types, n_parameters = len(problem.types), len(problem.shape.starts()[0])
    if start is None:
        theta = np.tile(problem.least_squares(), (n_types, 1))
        spread = np.full(n_parameters, _FIRST_SPREAD**2)
    else:
        known = dict(zip(start.types, start.theta, strict=True))
        theta = np.stack([known.get(name, start.common) for name in problem.types])
        spread = start.spread
    if pooling == "partial" and n_types > 1:
        return theta, spread
    if pooling == "none" and n_types > 1:
        return theta, np.full(n_parameters, _UNPOOLED_SPREAD)
    return np.tile(theta.mean(axis=0), (n_types, 1)), np.zeros(n_parameters)


def _medians(x: FloatArray, row: NDArray[np.int64]) -> FloatArray:
    """(n,) median of x within each matrix."""
    order = np.lexsort((x, row))
    bounds = np.searchsorted(row[order], np.arange(row.max() + 2))
    low, high = (bounds[:-1] + bounds[1:] - 1) // 2, (bounds[:-1] + bounds[1:]) // 2
    return np.asarray((x[order][low] + x[order][high]) / 2)
