"""Robust fit of a parametric shape with one free scale a matrix, by variable projection.

Given θ the best log s_i is the weighted mean of y − log g over the matrix's measurements, so only θ is searched
(Golub & Pereyra 1973). Outliers are weighted down by Huber's function of the residual in units of its MAD, iterated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student_t

from compress_core.errors import FitError
from compress_core.fit.error_fit import ErrorFit, Parameter, PhysicalCheck
from compress_core.fit.observation import ErrorObservation, ObservationTable
from compress_core.fit.quality import fit_quality, leave_one_config_out
from compress_core.fit.shapes import AdditiveShape, LogLinearShape, Shape
from compress_core.matrix import MatrixKey

FloatArray = NDArray[np.float64]
_HUBER = 1.345
_MAD_TO_SIGMA = 1.4826
_REWEIGHTINGS = 12
#: a residual scale of rounding errors: nothing to weigh down
_EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class ParametricFit(ErrorFit):
    """E_i(b, r) = s_i·g(b, r; θ)."""

    shape: Shape = field(default_factory=LogLinearShape)
    theta: FloatArray = field(default_factory=lambda: np.zeros(0))
    log_scale: Mapping[MatrixKey, float] = field(default_factory=dict)
    zero_matrices: frozenset[MatrixKey] = frozenset()

    def predict(self, matrix: MatrixKey, b_q: int, rank: int) -> float:
        if matrix in self.zero_matrices:
            return 0.0
        if matrix not in self.log_scale:
            raise FitError(f"the fit knows no matrix {matrix}: measure at least one config of it")
        log_g, _ = self.shape.log_shape(self.theta, np.array([float(b_q)]), np.array([math.log1p(rank)]))
        return math.exp(self.log_scale[matrix] + float(log_g[0]))


class _Projected:
    """Residuals with the scales projected out, for given weights."""

    def __init__(self, shape: Shape, table: ObservationTable, weight: FloatArray) -> None:
        self.shape, self.table, self.weight = shape, table, weight
        self.root = np.sqrt(weight)
        self.per_matrix = np.bincount(table.row, weights=weight)

    def mean(self, x: FloatArray) -> FloatArray:
        """(n,) weighted mean of x within each matrix."""
        return np.bincount(self.table.row, weights=self.weight * x) / self.per_matrix

    def log_shape(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self.shape.log_shape(theta, self.table.bits, self.table.log_rank)

    def deviation(self, theta: FloatArray) -> FloatArray:
        """(m,) y − log g − its mean within the matrix."""
        x = self.table.y - self.log_shape(theta)[0]
        return x - self.mean(x)[self.table.row]

    def residual(self, theta: FloatArray) -> FloatArray:
        return self.root * self.deviation(theta)

    def jacobian(self, theta: FloatArray) -> FloatArray:
        columns = self.log_shape(theta)[1]
        centred = [c - self.mean(c)[self.table.row] for c in columns.T]
        return -self.root[:, None] * np.stack(centred, axis=1)

    def solve(self, start: Sequence[float] | FloatArray) -> tuple[FloatArray, float]:
        found = least_squares(self.residual, np.asarray(start), jac=self.jacobian, method="lm", x_scale="jac")
        return found.x, float(found.cost)


def _solve(shape: Shape, table: ObservationTable, start: FloatArray | None) -> tuple[FloatArray, _Projected]:
    problem = _Projected(shape, table, table.weight)
    starts: Iterable[Sequence[float] | FloatArray] = shape.starts() if start is None else [start]
    theta, _ = min((problem.solve(s) for s in starts), key=lambda pair: pair[1])
    for _ in range(_REWEIGHTINGS):
        deviation = problem.deviation(theta)
        # residuals of equal matrices differ in precision by their weights
        standard = deviation * np.sqrt(table.weight)
        sigma = _MAD_TO_SIGMA * float(np.median(np.abs(standard)))
        if sigma < _EXACT:
            break
        huber = np.minimum(1.0, _HUBER * sigma / np.maximum(np.abs(standard), 1e-300))
        problem = _Projected(shape, table, table.weight * huber)
        before, (theta, _) = theta, problem.solve(theta)
        if np.allclose(before, theta, rtol=1e-6, atol=1e-9):
            break
    return theta, problem


def _named_parameters(shape: Shape, theta: FloatArray, problem: _Projected) -> tuple[Parameter, ...]:
    """Values with standard errors: covariance σ²·(JᵀJ)⁻¹ of θ, carried to the names by their derivatives."""
    n_matrices, m, p = len(problem.table.matrices), len(problem.table.y), len(theta)
    freedom = m - n_matrices - p
    jacobian = problem.jacobian(theta)
    sigma2 = float((problem.residual(theta) ** 2).sum()) / freedom
    values = shape.named(theta)
    steps = 1e-6 * np.maximum(1.0, np.abs(theta))
    slope = np.stack(
        [(shape.named(theta + d) - shape.named(theta - d)) / (2 * d.sum()) for d in np.diag(steps)], axis=1
    )
    scale = np.linalg.norm(jacobian, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        normal = (jacobian / scale).T @ (jacobian / scale)
    if not np.isfinite(normal).all() or np.linalg.cond(normal) > 1e12:
        errors = np.full(len(values), np.inf)
    else:
        covariance = sigma2 * np.linalg.inv(normal) / np.outer(scale, scale)
        errors = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", slope, covariance, slope), 0.0))
    quantile = float(student_t.ppf(0.975, freedom))
    return tuple(
        Parameter(name, float(v), float(e), float(v - quantile * e), float(v + quantile * e))
        for name, v, e in zip(shape.names, values, errors, strict=True)
    )


def _checks(shape: Shape, parameters: Sequence[Parameter]) -> tuple[PhysicalCheck, ...]:
    return tuple(
        PhysicalCheck(
            f"{p.name} > 0",
            p.value > 0,
            p.low > 0,
            f"{p.name} = {p.value:.4g}, 95 % interval {p.low:.4g} … {p.high:.4g}",
        )
        for p in parameters
        if p.name in shape.positive
    )


def fit_shape(
    shape: Shape, observations: Sequence[ErrorObservation], *, start: FloatArray | None = None
) -> ParametricFit:
    """Fit one shape, without cross-validation.

    Raises:
        FitError: too few bits, ranks or configs, or fewer measurements than unknowns.
        NonFiniteValues: an error or weight makes no sense.
    """
    table = ObservationTable.collect(observations)
    table.require(cells=shape.min_cells, bits=shape.min_bits, ranks=shape.min_ranks, form=shape.form)
    unknowns = len(table.matrices) + len(shape.starts()[0])
    if len(table.y) <= unknowns:
        raise FitError(
            f"the {shape.form} fit has {unknowns} unknowns ({len(table.matrices)} scales and {len(shape.starts()[0])} "
            f"shape parameters) but only {len(table.y)} measurements with a positive error: measure more configs"
        )
    theta, problem = _solve(shape, table, start)
    log_g, _ = problem.log_shape(theta)
    log_scale = problem.mean(table.y - log_g)
    predicted = log_scale[table.row] + log_g
    residuals = np.full(table.n_given, np.nan)
    residuals[table.source] = table.y - predicted
    parameters = _named_parameters(shape, theta, problem)
    shift = shape.log_scale_shift(theta)
    scales = {key: math.exp(value + shift) for key, value in zip(table.matrices, log_scale.tolist(), strict=True)}
    return ParametricFit(
        form=shape.form,
        parameters=parameters,
        scales=scales | dict.fromkeys(table.zero_matrices, 0.0),
        quality=fit_quality(table, predicted),
        residuals=residuals,
        n_observations=table.n_given,
        n_zero=table.n_zero,
        checks=_checks(shape, parameters),
        shape=shape,
        theta=theta,
        log_scale=dict(zip(table.matrices, log_scale.tolist(), strict=True)),
        zero_matrices=frozenset(table.zero_matrices),
    )


def _validated(shape: Shape, observations: Iterable[ErrorObservation], cross_validate: bool) -> ParametricFit:
    given = list(observations)
    fit = fit_shape(shape, given)
    if not cross_validate:
        return fit
    # the folds start from the full fit: they differ little, and θ is all that is searched
    return fit.validated(leave_one_config_out(given, lambda rest: fit_shape(shape, rest, start=fit.theta)))


def fit_additive(observations: Iterable[ErrorObservation], *, cross_validate: bool = True) -> ParametricFit:
    """Fit the plan's E_i(b, r) = s_i·(α·2^(−β·b) + γ·(r+1)^(−δ)), α + γ = 1, on log error.

    Raises:
        FitError: fewer than 2 b_q, 2 ranks or 4 configs, or fewer measurements than unknowns.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    given = list(observations)
    centre = float(np.mean(sorted({o.b_q for o in given}))) if given else 0.0
    return _validated(AdditiveShape(centre), given, cross_validate)


def fit_log_linear(observations: Iterable[ErrorObservation], *, cross_validate: bool = True) -> ParametricFit:
    """Fit the rival E_i(b, r) = s_i·2^(−β·b)·(r+1)^(−δ). Raises as ``fit_additive``."""
    return _validated(LogLinearShape(), observations, cross_validate)
