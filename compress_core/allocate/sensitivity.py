"""Sensitivities a_i: nats of KL per unit of error, from anchors, shrunk toward the projection type's mean.

At an anchor config c matrix i alone is compressed; its KL to the original and its error ε_i(c) give one estimate
log a = log KL_i(c) − log ε_i(c). Anchors are averaged in log. Then empirical Bayes on the log scale
(Efron & Morris 1975): within a projection type log a_i ~ N(μ, τ²), so the posterior mean is
μ + τ²/(τ² + se_i²)·(log a_i − μ).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import MatrixKey

#: a KL below this many standard errors is not told apart from zero and raised to it
FLOOR_STANDARD_ERRORS = 0.5
#: nats; the floor where the standard error is zero or unknown, about float32 rounding of a log-probability
FLOOR_NATS = 1e-9
#: standard error of log KL at the floor, or where it is unknown: right to a factor of e
UNKNOWN_LOG_SE = 1.0
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class KLAnchor:
    """KL(original ‖ model with this one matrix compressed at an anchor config)."""

    matrix: MatrixKey
    #: ε_i of the anchor config
    error: float
    #: nats a token, mean over sequences; noise can make it zero or negative
    kl: float
    #: standard error of ``kl`` over sequences; 0 takes it as exact, None or inf (one sequence) as unknown
    kl_se: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """a_i with its uncertainty; ``low``/``high`` is the 95 % interval of the shrunk value."""

    matrix: MatrixKey
    #: shrunk estimate, nats of KL per unit of error
    value: float
    log_se: float
    low: float
    high: float
    #: before shrinkage; None where no anchor had any error
    raw: float | None
    raw_log_se: float | None
    #: weight of the matrix's own anchors against its type's mean, 0 … 1
    own_weight: float
    n_anchors: int
    #: anchors whose KL was raised to the floor
    n_floored: int


@dataclass(frozen=True, slots=True)
class _Raw:
    log_value: float
    log_se: float
    n: int
    n_floored: int


def estimate_sensitivities(anchors: Iterable[KLAnchor], *, shrink: bool = True) -> dict[MatrixKey, Sensitivity]:
    """Combine anchors into one sensitivity a matrix.

    The standard error of a matrix's log a is the mean of the anchors' own (se(KL)/KL: they are measured on the same
    sequences, so their errors do not average out), or comes from half of what they disagree (sample variance / m),
    whichever is larger: anchors can be precise and still disagree, where KL is not linear in ε. A KL at or below
    max(0.5·se, 1e-9 nats) is raised to that floor and given a standard error of 1 in log. Anchors with zero error say
    nothing and are left out; a matrix without any other takes its type's mean.

    Raises:
        NonFiniteValues: an anchor holds NaN, infinity, or a negative error or standard error.
        FitError: no anchor at all, or none with a positive error.
    """
    groups: dict[MatrixKey, list[KLAnchor]] = {}
    for anchor in anchors:
        values = (anchor.error, anchor.kl, anchor.kl_se)
        se = anchor.kl_se or 0.0
        if not (math.isfinite(anchor.error) and math.isfinite(anchor.kl)) or anchor.error < 0 or not se >= 0:
            raise NonFiniteValues(f"anchor of matrix {anchor.matrix}: error, KL and its se are {values}")
        groups.setdefault(anchor.matrix, []).append(anchor)
    if not groups:
        raise FitError("no KL anchor: measure the sensitivity of at least one matrix")
    raw = {key: found for key, group in groups.items() if (found := _combine(group)) is not None}
    if not raw:
        raise FitError("every KL anchor has zero error: choose coarser anchor configs")
    priors = _priors(raw) if shrink else {}
    overall = _prior(list(raw.values()))
    out = {}
    for key, group in sorted(groups.items()):
        prior = priors.get(key.projection, overall)
        out[key] = _posterior(key, raw.get(key), prior, shrink=shrink, n_given=len(group))
    return out


def _combine(group: list[KLAnchor]) -> _Raw | None:
    logs, errors, floored = [], [], 0
    for anchor in group:
        if anchor.error == 0:
            continue
        known = anchor.kl_se if anchor.kl_se is not None and math.isfinite(anchor.kl_se) else None
        floor = max(FLOOR_STANDARD_ERRORS * (known or 0.0), FLOOR_NATS)
        if anchor.kl <= floor:
            floored += 1
            kl, se = floor, UNKNOWN_LOG_SE
        else:
            kl, se = anchor.kl, UNKNOWN_LOG_SE if known is None else known / anchor.kl
        logs.append(math.log(kl) - math.log(anchor.error))
        errors.append(se)
    if not logs:
        return None
    m = len(logs)
    variance = (math.fsum(errors) / m) ** 2
    if m > 1:
        variance = max(variance, float(np.var(logs, ddof=1)) / (2 * m))
    return _Raw(math.fsum(logs) / m, math.sqrt(variance), m, floored)


@dataclass(frozen=True, slots=True)
class _Prior:
    """log a ~ N(mean, spread) within a projection type; ``mean_variance`` is how well the mean itself is known."""

    mean: float
    spread: float
    mean_variance: float


def _prior(raws: list[_Raw]) -> _Prior:
    """Method of moments: precision-weighted mean, and the variance that the standard errors do not explain."""
    values = np.array([r.log_value for r in raws])
    errors = np.array([r.log_se**2 for r in raws])
    if len(raws) < 2:
        return _Prior(float(values.mean()), math.inf, float(errors.mean()))
    tau2 = max(0.0, float(values.var(ddof=1) - errors.mean()))
    weight = 1 / np.maximum(errors + tau2, 1e-12)
    return _Prior(float((weight * values).sum() / weight.sum()), tau2, float(1 / weight.sum()))


def _priors(raw: Mapping[MatrixKey, _Raw]) -> dict[str, _Prior]:
    types: dict[str, list[_Raw]] = {}
    for key, value in raw.items():
        types.setdefault(key.projection, []).append(value)
    return {projection: _prior(values) for projection, values in types.items()}


def _posterior(key: MatrixKey, raw: _Raw | None, prior: _Prior, *, shrink: bool, n_given: int) -> Sensitivity:
    if raw is None:
        spread = prior.spread if math.isfinite(prior.spread) else UNKNOWN_LOG_SE**2
        return _named(key, prior.mean, math.sqrt(spread + prior.mean_variance), None, 0.0, n_given, 0)
    variance = raw.log_se**2
    alone = not shrink or math.isinf(prior.spread) or variance == 0
    own = 1.0 if alone else prior.spread / (prior.spread + variance)
    centre = own * raw.log_value + (1 - own) * prior.mean
    log_se = math.sqrt(own * variance + (1 - own) ** 2 * prior.mean_variance)
    return _named(key, centre, log_se, raw, own, raw.n, raw.n_floored)


def _named(
    key: MatrixKey, log_value: float, log_se: float, raw: _Raw | None, own: float, n: int, floored: int
) -> Sensitivity:
    return Sensitivity(
        matrix=key,
        value=math.exp(log_value),
        log_se=log_se,
        low=math.exp(log_value - _Z95 * log_se),
        high=math.exp(log_value + _Z95 * log_se),
        raw=None if raw is None else math.exp(raw.log_value),
        raw_log_se=None if raw is None else raw.log_se,
        own_weight=own,
        n_anchors=n,
        n_floored=floored,
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """Largest over smallest value of a group, with a 95 % interval."""

    ratio: float
    low: float
    high: float


def layer_spread(sensitivities: Mapping[MatrixKey, Sensitivity], *, draws: int = 2000, seed: int = 0) -> Spread:
    """How much the layers' sensitivities differ: max/min over layers of Σ_i a_i, with a bootstrap interval.

    Noise alone makes a maximum larger and a minimum smaller, so the naive interval flatters. The draws add the
    noise of each log a_i once more; the basic (reflected) bootstrap interval 2·R − quantile(R*) of the log
    ratio R then takes that inflation off again. The low end is at least 1.

    Raises:
        FitError: fewer than two layers.
    """
    keys = sorted(sensitivities)
    layers = sorted({k.layer_idx for k in keys})
    if len(layers) < 2:
        raise FitError("the spread of sensitivities over layers needs at least two layers")
    row = np.array([layers.index(k.layer_idx) for k in keys])
    log_value = np.log([sensitivities[k].value for k in keys])
    log_se = np.array([sensitivities[k].log_se for k in keys])

    def log_ratio(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.stack([np.exp(logs[:, row == i]).sum(axis=1) for i in range(len(layers))], axis=1)
        return np.log(sums.max(axis=1) / sums.min(axis=1))

    point = float(log_ratio(log_value[None, :])[0])
    noise = np.random.default_rng(seed).normal(size=(draws, len(keys)))
    repeated = log_ratio(log_value + noise * log_se)
    upper, lower = np.quantile(repeated, [0.975, 0.025])
    low = max(0.0, 2 * point - float(upper))
    high = max(point, 2 * point - float(lower))
    return Spread(math.exp(point), math.exp(low), math.exp(high))
