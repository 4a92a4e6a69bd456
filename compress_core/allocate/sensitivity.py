"""Sensitivities a_i: nats of KL per unit of error, from anchors, shrunk toward the projection type's mean.

At an anchor config c matrix i alone is compressed; its KL to the original and its error ε_i(c) give one estimate
log a = log KL_i(c) − log ε_i(c). Anchors are averaged in log. Then empirical Bayes on the log scale
(Efron & Morris 1975): within a projection type log a_i ~ N(μ, τ²), so the posterior mean is
μ + τ²/(τ² + v_i)·(log a_i − μ), v_i the noise by which matrices of a type differ.

Where anchors have their KL for each sequence, noise comes from a bootstrap of the sequences (``resampling``), and what
all matrices of a type share of it does not count in v_i.

KL/ε hardly depends on the bits, but for some projections on whether there is an L·R (docs/decisions/026): cells without
and with it can have estimates of their own, from the anchors of their class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.resampling import DRAWS, log_draws
from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import MatrixKey

#: a KL below this many standard errors is not told apart from zero and raised to it
FLOOR_STANDARD_ERRORS = 0.5
#: nats; the floor where the standard error is zero or unknown, about float32 rounding of a log-probability
FLOOR_NATS = 1e-9
#: standard error of log KL at the floor, or where it is unknown: right to a factor of e
UNKNOWN_LOG_SE = 1.0
#: of a normal distribution: what 95 % of it lies within
Z95 = 1.959963984540054


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
    #: nats a token of each sequence, the same sequences for all anchors; None: only ``kl_se`` is known
    kl_per_sequence: tuple[float, ...] | None = None
    #: whether the anchor config has an L·R; None: no config (noise), or no matter
    low_rank: bool | None = None


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
    #: what ``log_se`` is at least, whatever the sequences say: anchors disagree, or a KL was raised to a floor
    least_se: float
    #: without the noise that is common to the matrices of the type
    own_se: float


def estimate_sensitivities(
    anchors: Iterable[KLAnchor], *, shrink: bool = True, draws: int = DRAWS, seed: int = 0
) -> dict[MatrixKey, Sensitivity]:
    """Combine anchors into one sensitivity a matrix.

    The standard error of a matrix's log a is its standard deviation over bootstrap draws of the sequences, where every
    anchor has its KL for each. Else it is the mean of the anchors' own se(KL)/KL: they are measured on the same
    sequences, so their errors do not average out. It is at least half of what the anchors disagree (sample variance /
    m): anchors can be precise and still disagree, where KL is not linear in ε. A KL at or below max(0.5·se, 1e-9 nats)
    is raised to that floor and given a standard error of 1 in log. Anchors with zero error say nothing and are left
    out; a matrix without any other takes its type's mean.

    Args:
        draws, seed: of the bootstrap.

    Raises:
        NonFiniteValues: an anchor holds NaN, infinity, or a negative error or standard error.
        FitError: no anchor at all, or none with a positive error.
    """
    groups = _grouped(anchors)
    if not groups:
        raise FitError("no KL anchor: measure the sensitivity of at least one matrix")
    raw = {key: found for key, group in groups.items() if (found := _combine(group)) is not None}
    if not raw:
        raise FitError("every KL anchor has zero error: choose coarser anchor configs")
    logs = _log_draws(groups, draws, seed)
    if logs:
        raw = _resampled(raw, logs)
    common = _common_variance(logs)
    priors = _priors(raw) if shrink else {}
    overall = _prior(list(raw.values()))
    out = {}
    for key, group in sorted(groups.items()):
        prior = priors.get(key.projection, overall)
        shared = common.get(key.projection, 0.0)
        out[key] = _posterior(key, raw.get(key), prior, shared, shrink=shrink, n_given=len(group))
    return out


#: of cells: all of a matrix, those without L·R, those with it
ALL_CELLS, RANK0, LOW_RANK = "all", "rank0", "low_rank"


def class_sensitivities(anchors: Iterable[KLAnchor], *, shrink: bool = True) -> dict[str, dict[MatrixKey, Sensitivity]]:
    """Sensitivities by the cells that they are for: "all"; and "rank0" and "low_rank", where anchors of both classes
    are there. A matrix that has no anchor of a class is missing in it: its cells take "all".

    Nats per unit of error hardly depend on the bits, but they do depend on whether there is an L·R. Softmax does not
    see an error that is the same for every key, such as what the mean of the inputs makes of D; rank-0 configs of q and
    k err much in that direction at no cost, and just this is what L·R takes away first, so what error is left then
    costs more. One average over both classes values one of them wrongly.

    Raises:
        NonFiniteValues, FitError: as :func:`estimate_sensitivities`.
    """
    everything = list(anchors)
    out = {ALL_CELLS: estimate_sensitivities(everything, shrink=shrink)}
    classes = {
        RANK0: [anchor for anchor in everything if anchor.low_rank is False],
        LOW_RANK: [anchor for anchor in everything if anchor.low_rank],
    }
    if all(any(anchor.error > 0 for anchor in group) for group in classes.values()):
        out |= {name: estimate_sensitivities(group, shrink=shrink) for name, group in classes.items()}
    return out


def bootstrap_logs(anchors: Iterable[KLAnchor], *, draws: int, seed: int) -> dict[MatrixKey, NDArray[np.float64]]:
    """(draws,) log a of each matrix, not shrunk, over bootstrap draws of the sequences; empty where these are unknown.

    Raises:
        NonFiniteValues: as :func:`estimate_sensitivities`.
    """
    return _log_draws(_grouped(anchors), draws, seed)


def _grouped(anchors: Iterable[KLAnchor]) -> dict[MatrixKey, list[KLAnchor]]:
    """Checked, by matrix."""
    groups: dict[MatrixKey, list[KLAnchor]] = {}
    for anchor in anchors:
        values = (anchor.error, anchor.kl, anchor.kl_se)
        se = anchor.kl_se or 0.0
        finite = all(map(math.isfinite, (anchor.error, anchor.kl, *(anchor.kl_per_sequence or ()))))
        if not finite or anchor.error < 0 or not se >= 0:
            raise NonFiniteValues(f"anchor of matrix {anchor.matrix}: error, KL and its se are {values}")
        groups.setdefault(anchor.matrix, []).append(anchor)
    return groups


def _telling(group: list[KLAnchor]) -> list[KLAnchor]:
    return [anchor for anchor in group if anchor.error > 0]


def _known_se(anchor: KLAnchor) -> float | None:
    return anchor.kl_se if anchor.kl_se is not None and math.isfinite(anchor.kl_se) else None


def _floor(anchor: KLAnchor) -> float:
    return max(FLOOR_STANDARD_ERRORS * (_known_se(anchor) or 0.0), FLOOR_NATS)


def _combine(group: list[KLAnchor]) -> _Raw | None:
    logs, errors, floored = [], [], 0
    for anchor in _telling(group):
        known, floor = _known_se(anchor), _floor(anchor)
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
    disagreement = float(np.var(logs, ddof=1)) / (2 * m) if m > 1 else 0.0
    least = math.sqrt(max(disagreement, (floored * UNKNOWN_LOG_SE / m) ** 2))
    log_se = max(math.fsum(errors) / m, least)
    return _Raw(math.fsum(logs) / m, log_se, m, floored, least, log_se)


def _log_draws(
    groups: Mapping[MatrixKey, list[KLAnchor]], draws: int, seed: int
) -> dict[MatrixKey, NDArray[np.float64]]:
    telling = {key: found for key, group in groups.items() if (found := _telling(group))}
    floors = {key: [_floor(anchor) for anchor in group] for key, group in telling.items()}
    return log_draws(telling, floors, draws=draws, seed=seed)


def _resampled(raw: Mapping[MatrixKey, _Raw], logs: Mapping[MatrixKey, NDArray[np.float64]]) -> dict[MatrixKey, _Raw]:
    """With standard errors from the draws."""
    out = {}
    for projection in {key.projection for key in raw}:
        keys = [key for key in raw if key.projection == projection]
        logs_BM = np.stack([logs[key] for key in keys], axis=1)
        n = len(keys)
        # of n deviations from their mean; alone, a matrix shares nothing
        own_BM = logs_BM - logs_BM.mean(axis=1, keepdims=True) if n > 1 else logs_BM
        spread = own_BM.var(axis=0, ddof=1) * (n / (n - 1) if n > 1 else 1.0)
        for number, key in enumerate(keys):
            least = raw[key].least_se
            log_se = max(float(logs_BM[:, number].std(ddof=1)), least)
            out[key] = replace(
                raw[key], log_se=log_se, own_se=min(log_se, max(math.sqrt(float(spread[number])), least))
            )
    return out


def _common_variance(logs: Mapping[MatrixKey, NDArray[np.float64]]) -> dict[str, float]:
    """Variance of each type's mean log a over the draws: it moves all matrices of the type together."""
    types: dict[str, list[NDArray[np.float64]]] = {}
    for key, values in logs.items():
        types.setdefault(key.projection, []).append(values)
    return {projection: float(np.mean(values, axis=0).var(ddof=1)) for projection, values in types.items()}


@dataclass(frozen=True, slots=True)
class _Prior:
    """log a ~ N(mean, spread) within a projection type; ``mean_variance`` is how well the mean itself is known."""

    mean: float
    spread: float
    mean_variance: float


def _prior(raws: list[_Raw]) -> _Prior:
    """Method of moments: precision-weighted mean, and the variance that the standard errors do not explain."""
    values = np.array([r.log_value for r in raws])
    errors = np.array([r.own_se**2 for r in raws])
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


def _posterior(
    key: MatrixKey, raw: _Raw | None, prior: _Prior, common: float, *, shrink: bool, n_given: int
) -> Sensitivity:
    """``common``: the variance that all matrices of the type share."""
    if raw is None:
        spread = prior.spread if math.isfinite(prior.spread) else UNKNOWN_LOG_SE**2
        variance = spread + max(common, prior.mean_variance)
        return _named(key, prior.mean, math.sqrt(variance), None, 0.0, n_given, 0)
    variance = raw.own_se**2
    if not shrink or math.isinf(prior.spread) or variance == 0:
        return _named(key, raw.log_value, raw.log_se, raw, 1.0, raw.n, raw.n_floored)
    own = prior.spread / (prior.spread + variance)
    centre = own * raw.log_value + (1 - own) * prior.mean
    log_se = math.sqrt(own * variance + max(common, (1 - own) ** 2 * prior.mean_variance))
    return _named(key, centre, log_se, raw, own, raw.n, raw.n_floored)


def _named(
    key: MatrixKey, log_value: float, log_se: float, raw: _Raw | None, own: float, n: int, floored: int
) -> Sensitivity:
    return Sensitivity(
        matrix=key,
        value=math.exp(log_value),
        log_se=log_se,
        low=math.exp(log_value - Z95 * log_se),
        high=math.exp(log_value + Z95 * log_se),
        raw=None if raw is None else math.exp(raw.log_value),
        raw_log_se=None if raw is None else raw.log_se,
        own_weight=own,
        n_anchors=n,
        n_floored=floored,
    )
