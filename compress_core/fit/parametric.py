"""ParametricFit: E_i(b, r) = s_i·g(b, r; θ of the matrix's projection type), robust, weighted and partially pooled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from compress_core.errors import FitError
from compress_core.fit.error_fit import ErrorFit, Parameter, PhysicalCheck
from compress_core.fit.leave_out import cross_validated
from compress_core.fit.noise import NoiseModel, estimate_noise
from compress_core.fit.observation import ErrorObservation, ObservationTable
from compress_core.fit.quality import fit_quality
from compress_core.fit.shapes import (
    AdditiveShape,
    LogLinearShape,
    PooledRankShape,
    Shape,
    ShapeCells,
    SpectralShape,
)
from compress_core.fit.solver import Pooling, Solution, Start, solve
from compress_core.fit.spectrum import Spectra, captured_at, nearest_spectrum
from compress_core.matrix import MatrixKey

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ParametricFit(ErrorFit):
    """E_i(b, r) = s_i·g(b, r; θ)."""

    shape: Shape = field(default_factory=LogLinearShape)
    #: projection → (p,) the solver's θ
    theta: Mapping[str, FloatArray] = field(default_factory=dict)
    log_scale: Mapping[MatrixKey, float] = field(default_factory=dict)
    zero_matrices: frozenset[MatrixKey] = frozenset()
    #: only of the shape that needs them
    spectra: Spectra = field(default_factory=dict)
    start: Start | None = None
    noise: NoiseModel = field(default_factory=NoiseModel)

    @property
    def n_parameters(self) -> int:
        return len(self.shape.starts()[0])

    def predict(self, matrix: MatrixKey, b_q: int, rank: int) -> float:
        if matrix in self.zero_matrices:
            return 0.0
        if matrix not in self.log_scale:
            raise FitError(f"the fit knows no matrix {matrix}: measure at least one config of it")
        captured = None
        theta = self.theta[matrix.projection]
        if isinstance(self.shape, SpectralShape):
            captured = np.array([captured_at(nearest_spectrum(self.spectra, matrix, b_q), rank)])
        log_g, _ = self.shape.log_shape(theta, ShapeCells(np.array([float(b_q)]), np.array([float(rank)]), captured))
        return math.exp(self.log_scale[matrix] + float(log_g[0]))


def _named_parameters(shape: Shape, found: Solution) -> tuple[Parameter, ...]:
    """The common parameters and each type's, with 95 % intervals, symmetric on the shape's unbounded scales."""
    pooled, n_types = found.pooled, len(found.types)
    between = pooled.spread / n_types if n_types > 1 else np.zeros_like(pooled.spread)
    # what the types scatter is known from so many types only, what a measurement scatters from many residuals
    common = _parameters(shape, pooled.common, pooled.common_covariance, pooled.identified, found.freedom)
    if n_types > 1:
        slope = _slope(shape.linked, pooled.common)
        freedom = _freedom(slope**2 @ between, slope, pooled.common_covariance, n_types - 1, found.freedom)
        common = _parameters(shape, pooled.common, pooled.common_covariance, pooled.identified, freedom)
    own = [
        parameter
        for name, theta, covariance in zip(found.types, found.theta, pooled.covariance, strict=True)
        for parameter in _parameters(shape, theta, covariance, pooled.identified, found.freedom, name)
    ]
    return (*common, *(own if n_types > 1 else ()))


def _slope(function: Any, theta: FloatArray) -> FloatArray:
    steps = 1e-6 * np.maximum(1.0, np.abs(theta))
    return np.stack([(function(theta + d) - function(theta - d)) / (2 * d.sum()) for d in np.diag(steps)], axis=1)


def _freedom(between: FloatArray, slope: FloatArray, covariance: FloatArray, few: int, many: int) -> FloatArray:
    """Satterthwaite's degrees of freedom of a variance of which ``between`` is known from ``few`` types."""
    total = np.maximum(np.einsum("ij,jk,ik->i", slope, covariance, slope), 1e-300)
    part = np.clip(between, 0, total)
    return np.asarray(np.maximum(total**2 / (part**2 / few + (total - part) ** 2 / many), 1.0))


def _parameters(
    shape: Shape,
    theta: FloatArray,
    covariance: FloatArray,
    identified: bool,
    freedom: float | FloatArray,
    projection: str | None = None,
) -> list[Parameter]:
    linked = shape.linked(theta)
    slope = _slope(shape.linked, theta)
    errors = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", slope, covariance, slope), 0.0))
    values = shape.unlinked(linked)
    direct = _slope(lambda x: shape.unlinked(shape.linked(x)), theta)
    standard = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", direct, covariance, direct), 0.0))
    reach = student_t.ppf(0.975, freedom) * errors
    low, high = shape.unlinked(linked - reach), shape.unlinked(linked + reach)
    if not identified:
        standard, low, high = (np.full(len(values), x) for x in (np.inf, -np.inf, np.inf))
    return [
        Parameter(name, float(v), float(e), float(a), float(b), projection)
        for name, v, e, a, b in zip(shape.names, values, standard, low, high, strict=True)
    ]


def _checks(shape: Shape, parameters: Sequence[Parameter]) -> tuple[PhysicalCheck, ...]:
    """The signs of the common parameters, and whether every type agrees."""
    checks = []
    for p in parameters:
        if p.projection is not None or p.name not in shape.positive:
            continue
        own = [q for q in parameters if q.name == p.name and q.projection is not None]
        wrong = [str(q.projection) for q in own if q.value <= 0]
        detail = f"{p.name} = {p.value:.4g}, 95 % interval {p.low:.4g} … {p.high:.4g}"
        detail += f"; not positive for {', '.join(wrong)}" if wrong else ""
        checks.append(PhysicalCheck(f"{p.name} > 0", p.value > 0 and not wrong, p.low > 0 and not wrong, detail))
    return tuple(checks)


def fit_shape(
    shape: Shape,
    observations: Sequence[ErrorObservation],
    *,
    spectra: Spectra | None = None,
    pooling: Pooling = "partial",
    start: Start | None = None,
    noise: NoiseModel | None = None,
) -> ParametricFit:
    """Fit one shape, without cross-validation.

    Args:
        start: a fit to begin with.
        noise: a noise model to weigh by; None = a first fit with equal noise tells it.

    Raises:
        FitError: too few bits, ranks or configs, fewer measurements than unknowns, or a spectrum is missing.
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
    captured = _captured(table, spectra or {}) if isinstance(shape, SpectralShape) else None
    cells = ShapeCells(table.bits, table.rank.astype(np.float64), captured)
    if noise is None:
        first = solve(shape, table, cells, table.weight, pooling=pooling, start=start)
        noise = estimate_noise(table, table.y - first.predicted, unknowns)
        start = Start.at(first)
    found = solve(shape, table, cells, noise.weights(table), pooling=pooling, start=start)
    residuals = np.full(table.n_given, np.nan)
    residuals[table.source] = table.y - found.predicted
    parameters = _named_parameters(shape, found)
    theta = dict(zip(found.types, found.theta, strict=True))
    log_scale = dict(zip(table.matrices, found.log_scale.tolist(), strict=True))
    scales = {key: math.exp(x + shape.log_scale_shift(theta[key.projection])) for key, x in log_scale.items()}
    return ParametricFit(
        form=shape.form,
        parameters=parameters,
        scales=scales | dict.fromkeys(table.zero_matrices, 0.0),
        quality=fit_quality(table, found.predicted),
        residuals=residuals,
        n_observations=table.n_given,
        n_zero=table.n_zero,
        checks=_checks(shape, parameters),
        details=_details(shape, found, noise, pooling),
        shape=shape,
        theta=theta,
        log_scale=log_scale,
        zero_matrices=frozenset(table.zero_matrices),
        spectra=(spectra or {}) if isinstance(shape, SpectralShape) else {},
        start=Start.at(found),
        noise=noise,
    )


def _captured(table: ObservationTable, spectra: Spectra) -> FloatArray:
    """(m,) ρ of each measurement."""
    found: dict[tuple[MatrixKey, int, int], float] = {}
    out = []
    for row, bits, rank in zip(table.row.tolist(), table.bits.tolist(), table.rank.tolist(), strict=True):
        key = (table.matrices[row], int(bits), rank)
        if key not in found:
            found[key] = captured_at(nearest_spectrum(spectra, key[0], key[1]), rank)
        out.append(found[key])
    return np.array(out)


def _details(shape: Shape, found: Solution, noise: NoiseModel, pooling: Pooling) -> dict[str, Any]:
    about: dict[str, Any] = {
        "pooling": pooling if len(found.types) > 1 else "complete",
        "between_types_sd": {f"theta{k}": math.sqrt(v) for k, v in enumerate(found.pooled.spread.tolist())},
        "noise": noise.to_dict(),
        "converged": found.converged,
    }
    match shape:
        case SpectralShape():
            about["rho"] = "each matrix's residual spectrum, at its bits or the nearest recorded"
        case PooledRankShape():
            about["largest_rank"] = shape.largest
            about["rho"] = "1 − exp(−γ·(r/R)^δ), one a projection type: no residual spectrum is recorded"
    return about


def _validated(
    shape: Shape, observations: Sequence[ErrorObservation], cross_validate: bool, pooling: Pooling, spectra: Spectra
) -> ParametricFit:
    fit = fit_shape(shape, observations, pooling=pooling, spectra=spectra)
    if not cross_validate:
        return fit
    # the folds begin at the whole fit and weigh as it does; every parameter is searched anew

    def refit(rest: Sequence[ErrorObservation]) -> ParametricFit:
        return fit_shape(shape, rest, pooling=pooling, spectra=spectra, start=fit.start, noise=fit.noise)

    return cross_validated(fit, observations, refit)


def fit_additive(
    observations: Iterable[ErrorObservation], *, cross_validate: bool = True, pooling: Pooling = "partial"
) -> ParametricFit:
    """Fit the plan's E_i(b, r) = s_i·(α·2^(−β·b) + γ·(r+1)^(−δ)), α + γ = 1, on log error.

    Raises:
        FitError: fewer than 2 b_q, 2 ranks or 4 configs, or fewer measurements than unknowns.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    given = list(observations)
    centre = float(np.mean(sorted({o.b_q for o in given}))) if given else 0.0
    return _validated(AdditiveShape(centre), given, cross_validate, pooling, {})


def fit_log_linear(
    observations: Iterable[ErrorObservation], *, cross_validate: bool = True, pooling: Pooling = "partial"
) -> ParametricFit:
    """Fit the rival E_i(b, r) = s_i·2^(−β·b)·(r+1)^(−δ). Raises as ``fit_additive``."""
    return _validated(LogLinearShape(), list(observations), cross_validate, pooling, {})


def fit_multiplicative(
    observations: Iterable[ErrorObservation],
    *,
    spectra: Spectra | None = None,
    cross_validate: bool = True,
    pooling: Pooling = "partial",
) -> ParametricFit:
    """Fit E_i(b, r) = s_i·2^(−β·b)·(1 − ρ_i(r))^η, ρ_i from the matrix's residual spectrum.

    Where a matrix has no spectrum, the fit takes ρ(r) = 1 − exp(−γ·(r/R)^δ) for all instead, R the largest rank
    measured, and says so in its details.

    Args:
        spectra: by (matrix, b_q); at other bits the nearest counts.

    Raises:
        FitError: fewer than 2 b_q or 2 ranks (3 without spectra), fewer measurements than unknowns, or a rank lies
            beyond the spectra.
        NonFiniteValues: an error is NaN, infinite or negative.
    """
    given = list(observations)
    table = ObservationTable.collect(given)
    have = {matrix for matrix, _ in spectra or {}}
    if spectra and have.issuperset(table.matrices):
        return _validated(SpectralShape(), given, cross_validate, pooling, spectra)
    shape = PooledRankShape.over(table.rank.astype(np.float64))
    return _validated(shape, given, cross_validate, pooling, {})
