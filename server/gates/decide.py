"""Which evidence each gate looks at. The criteria themselves are compress_core.analyze.gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress_core.analyze import Estimate, GateResult, GateThresholds, gates
from compress_core.errors import FitError
from results_db.tables import Allocation, Fit
from server.gates.evidence import Evidence
from server.studies.guard import correlation, slope


@dataclass(frozen=True, slots=True)
class Criterion:
    """A gate's question and how it is decided."""

    question: str
    decide: Callable[[Evidence, GateThresholds, int], GateResult]


def _sensitivity_varies(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    return gates.sensitivity_varies(evidence.sensitivity_spread(), thresholds)


def _manual_beats_uniform(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    context = evidence.context
    recipe = evidence.recipe()
    split = {} if recipe is None else recipe.details
    return gates.manual_beats_uniform(
        evidence.gain_percent(context["uniform"], context["manual"]),
        thresholds,
        n_high=len(split["high_layers"]) if "high_layers" in split else None,
        n_low=len(split["low_layers"]) if "low_layers" in split else None,
    )


def _error_varies(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    profiles = evidence.profiles()
    return gates.error_varies(None if profiles is None else profiles.config_ratio, thresholds)


def _profiles_differ(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    profiles = evidence.profiles()
    try:
        level = None if profiles is None else profiles.level_and_shape_factor
        shape = None if profiles is None else profiles.shape_factor
    except FitError:
        level = shape = None  # no two layers share a config: the gate says "not measured"
    return gates.profiles_differ(level, shape, thresholds)


def _collection_complete(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    cells = evidence.cells()
    if cells is None:
        return gates.collection_complete(expected=0, measured=0, thresholds=thresholds)
    return gates.collection_complete(
        expected=cells.expected, measured=cells.measured, lost=cells.lost_attempts, thresholds=thresholds
    )


def _r2(fit: Fit) -> tuple[float | None, str]:
    """R² of errors that the fit has not seen, within matrices, where there is one."""
    if fit.r2_by_group.get("cross_validated") is not None:
        return fit.r2_by_group["cross_validated"], "log error within matrices, leaving each config out"
    return fit.r2_by_group.get("within_matrices"), "log error within matrices"


def _is_parametric(fit: Fit) -> bool:
    return fit.form != "monotone"


def _fit_explains(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    fit, refused = evidence.fit(), evidence.refused_fit()
    if fit is None:
        return gates.fit_explains(None, thresholds)
    r2, basis = _r2(fit)
    return gates.fit_explains(
        r2,
        thresholds,
        parametric=_is_parametric(fit),
        basis=basis,
        form=fit.form,
        refused=None if refused is None else (refused.form, _r2(refused)[0]),
    )


def _parameters_physical(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    fit = evidence.parametric_fit()
    if fit is None:
        return gates.parameters_physical(None if evidence.fit() is None else {})
    asked = [name.removesuffix("_positive") for name in fit.checks]
    rows = [row for row in evidence.parameters(fit) if row.name in asked]
    found = {row.name: row.value for row in rows if row.projection is None}
    lows = {row.name: row.low for row in rows if row.projection is None and row.low is not None}
    # what all types share may be positive although one type's own is not
    found |= {f"{row.name} of {row.projection}": row.value for row in rows if row.projection and row.value <= 0}
    return gates.parameters_physical(found, lows=lows)


def _by_type(fit: Fit, scheme: str) -> dict[str, float | None]:
    """R² within matrices of what the fit has not seen, of attention and MLP; empty where nothing was left out."""
    quality = (fit.cv.get(scheme) or {}).get("quality", {})
    return {name: (quality.get(name) or {}).get("r2_log_within") for name in ("attention", "mlp")}


def _fit_generalises(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    fit = evidence.fit()
    if fit is None:
        return gates.fit_generalises({}, thresholds)
    return gates.fit_generalises(
        _by_type(fit, "config"),
        thresholds,
        parametric=_is_parametric(fit),
        layers_by_type=_by_type(fit, "layer"),
    )


def _slack(allocation: Allocation | None) -> bool:
    return bool(allocation and allocation.details.get("slack"))


def _optimal_differs(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    found = evidence.allocation()
    if found is None:
        return gates.optimal_differs(n_configs=None, is_uniform=False, slack=False)
    is_uniform = bool(found.details["is_uniform"])
    return gates.optimal_differs(n_configs=found.n_distinct_configs, is_uniform=is_uniform, slack=_slack(found))


def _bytes_match(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    found, packed = evidence.allocation(), evidence.compression()
    if found is None or found.budget_bytes is None:
        return gates.bytes_match(predicted=None, actual=None, budget=0, thresholds=thresholds)
    # a packed file holds everything: in scope decoder the rest of it is taken off
    outside = found.matrix_bytes + found.fixed_bytes - found.total_bytes
    return gates.bytes_match(
        predicted=found.total_bytes,
        actual=None if packed is None else packed.actual_bytes - outside,
        budget=found.budget_bytes,
        thresholds=thresholds,
        slack=_slack(found),
    )


def _allocator_fast(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    found = evidence.allocation()
    return gates.allocator_fast(None if found is None else found.seconds, thresholds)


def _optimal_beats_uniform(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    context = evidence.context
    # phase 5 names every pair; the first is that of phase 4
    pair: dict[str, Any] = next(iter(context["pairs"].values())) if "pairs" in context else context
    gain = evidence.gain_percent(pair["uniform"], evidence.optimum(pair))
    return gates.optimal_beats_uniform(gain, thresholds, phase=phase, slack=_slack(evidence.allocation()))


def _prediction_ranks(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    found = {label: row for label, row in evidence.validations().items() if correlation(row) is not None}
    if not found:
        return gates.prediction_ranks(None, thresholds)
    # the worst budget decides, of those with about as many allocations: without random ones there are too few to rank
    most = max(row.n_allocations for row in found.values())
    found = {label: row for label, row in found.items() if 2 * row.n_allocations >= most}
    label, row = min(found.items(), key=lambda item: item[1].spearman or 0.0)
    where = label if len(found) > 1 else ""
    return gates.prediction_ranks(correlation(row), thresholds, slope=slope(row), where=where)


def _downstream_preserved(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    # no downstream task exists yet: perplexity is the only one
    return gates.downstream_preserved(None, thresholds)


def _scaled_fit_explains(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    fit = evidence.fit()
    return gates.scaled_fit_explains(None if fit is None else _r2(fit)[0], thresholds)


def _consistent(evidence: Evidence, thresholds: GateThresholds, phase: int) -> GateResult:
    gains: dict[str, Estimate] = {}
    for label, pair in evidence.context["pairs"].items():
        gain = evidence.gain_percent(pair["uniform"], evidence.optimum(pair))
        if gain is not None and np.isfinite(gain.value):
            gains[label] = gain
    return gates.consistent(gains)


CRITERIA: dict[str, Criterion] = {
    "sensitivity_varies": Criterion("Does sensitivity vary across layers?", _sensitivity_varies),
    "manual_beats_uniform": Criterion("Does a manual allocation beat uniform at its bytes?", _manual_beats_uniform),
    "error_varies": Criterion("Does the error of a matrix vary over its configs?", _error_varies),
    "profiles_differ": Criterion("Do layers show different error profiles?", _profiles_differ),
    "collection_complete": Criterion("Is every cell of the sweep measured?", _collection_complete),
    "fit_explains": Criterion("Does the error model explain the measurements?", _fit_explains),
    "parameters_physical": Criterion(
        "Are the fitted parameters physically reasonable (β, δ > 0)?", _parameters_physical
    ),
    "fit_generalises": Criterion("Does the model hold for attention and for MLP?", _fit_generalises),
    "optimal_differs": Criterion("Does the optimal allocation differ from uniform?", _optimal_differs),
    "bytes_match": Criterion("Do the bytes match the budget and the prediction?", _bytes_match),
    "allocator_fast": Criterion("Is the allocator fast?", _allocator_fast),
    "optimal_beats_uniform": Criterion("Does optimal beat the best uniform at no more bytes?", _optimal_beats_uniform),
    "prediction_ranks": Criterion("Does predicted KL rank allocations as realised KL does?", _prediction_ranks),
    "downstream_preserved": Criterion("Are downstream tasks preserved?", _downstream_preserved),
    "scaled_fit_explains": Criterion("Does the error model hold on this model?", _scaled_fit_explains),
    "consistent": Criterion("Is the gain consistent over benchmarks and budgets?", _consistent),
}
