"""The plan's GO/NO-GO criteria, phase by phase, as pure functions of plain numbers.

Wherever a number is noisy the interval decides, not the point. None as input means: not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from compress_core.analyze.decide import decide_exact, decide_interval, not_measured
from compress_core.analyze.thresholds import GateThresholds
from compress_core.analyze.verdict import Estimate, GateResult, Verdict, samples_needed

_PIVOT = "Sensitivity does not vary enough to allocate by: study the Goodhart question alone."
_INVESTIGATE = "Find out why sensitivity does not predict the error before sweeping a larger model."
_OTHER_DIRECTION = "Bits and rank hardly move the error: change the research direction."
_ONE_PROFILE = "One profile for all layers: fit a single scale-free curve and allocate by sensitivity alone."
_RERUN = "Repair and resume the sweep: recorded cells are kept, only the missing ones run again."
_INTERPOLATE = "Use non-parametric interpolation of the measured cells instead of the parametric model."
_UNIFORM_PAPER = "Report that uniform allocation is (near) optimal here, which is a result of its own."
_FIX_ALLOCATOR = "Repair the byte accounting before anything is compressed."
_SPEED = "Shrink the menu or relax the proof: allocation must stay interactive."
_ERROR_MODEL = "Re-examine the error model and the objective before scaling up."
_GOODHART = "Carry the divergence between perplexity and downstream tasks into the Goodhart analysis."
_REANCHOR = (
    "Measure sensitivities anew at the optimum and choose again, which a study does by itself where the prediction "
    "does not hold, and ship what the guard keeps."
)
_SMALLER = "Publish on the smaller model only."


# ---- phase 0: does sensitivity vary, and does a manual allocation use it?


def sensitivity_varies(spread: Estimate | None, thresholds: GateThresholds) -> GateResult:
    """Most over least sensitive layer > 3×, at the low end of the interval (``allocate.layer_spread``)."""
    name, need = "sensitivity_varies", thresholds.sensitivity_ratio
    if spread is None:
        return not_measured(0, name, need, "×", _PIVOT, "no sensitivity job has finished")
    return decide_interval(0, name, spread, need, "×", "The most over the least sensitive layer", _PIVOT)


def manual_beats_uniform(
    gain_percent: Estimate | None, thresholds: GateThresholds, *, n_high: int | None = None, n_low: int | None = None
) -> GateResult:
    """PPL gain of the manual recipe over uniform > 2 %; gain = 100·(1 − PPL_manual/PPL_uniform), paired.

    Args:
        n_high: layers at the recipe's high config; where it is 0, or ``n_low`` is, the recipe split nothing and its
            gain says nothing about splitting.
    """
    name, need = "manual_beats_uniform", thresholds.manual_gain_percent
    if gain_percent is None:
        return not_measured(0, name, need, "%", _INVESTIGATE, "manual and uniform are not both evaluated")
    result = decide_interval(0, name, gain_percent, need, "%", "The PPL gain of manual over uniform", _INVESTIGATE)
    if n_high != 0 and n_low != 0:
        return result
    side = "low" if n_high == 0 else "high"
    detail = f"{result.detail} But every layer has the {side} config, so nothing was split: choose other configs."
    return replace(result, verdict=Verdict.NOT_DECIDABLE, detail=detail, needed_samples=None)


# ---- phase 1: the data


def error_varies(config_ratios: ArrayLike | None, thresholds: GateThresholds) -> GateResult:
    """Largest over smallest error of the same matrix over its configs > 10×, for the median matrix.

    Args:
        config_ratios: (n,) one ratio per matrix (``fit.error_profiles(...).config_ratio``).
    """
    name, need = "error_varies", thresholds.error_ratio
    ratios = np.asarray([] if config_ratios is None else config_ratios, dtype=np.float64)
    if not ratios.size:
        return not_measured(1, name, need, "×", _OTHER_DIRECTION, "no error is measured")
    value = float(np.median(ratios))
    above = int((ratios > need).sum())
    detail = (
        f"Over its configs the error of the median matrix varies {value:.3g}× (threshold {need:g}×); "
        f"{above} of {ratios.size} matrices exceed it, from {ratios.min():.3g}× to {ratios.max():.3g}×."
    )
    return decide_exact(1, name, value > need, value, need, "×", detail, _OTHER_DIRECTION)


def profiles_differ(
    level_and_shape_factor: float | None, shape_factor: float | None, thresholds: GateThresholds
) -> GateResult:
    """Layers show different error profiles: the same config's error typically differs by a factor > 1.1 between layers.

    The plan names no number; the factor is exp(RMS deviation of log error from the mean over layers). ``shape_factor``
    is the part that a scale per layer does not explain, told in the detail.
    """
    name, need = "profiles_differ", thresholds.profile_factor
    if level_and_shape_factor is None:
        return not_measured(1, name, need, "×", _ONE_PROFILE, "fewer than two layers share a config")
    shape = "" if shape_factor is None else f"; {shape_factor:.3g}× of it remains when each layer's level is taken out"
    detail = (
        f"Between layers the same config's error typically differs by {level_and_shape_factor:.3g}× "
        f"(threshold {need:g}×){shape}."
    )
    passed = level_and_shape_factor > need
    return decide_exact(1, name, passed, level_and_shape_factor, need, "×", detail, _ONE_PROFILE)


def collection_complete(
    *, expected: int, measured: int, failed: int = 0, lost: int = 0, thresholds: GateThresholds | None = None
) -> GateResult:
    """Every cell of the sweep is measured, none failed.

    Args:
        expected: cells (matrix, config) that the sweep asked for.
        measured: cells recorded.
        failed: cells given up on.
        lost: attempts that a worker died in. They are reported, but only cells that are still missing count.
    """
    name = "collection_complete"
    if expected <= 0:
        return not_measured(1, name, 1.0, "share", _RERUN, "no sweep was asked for")
    missing = expected - measured
    share = measured / expected
    detail = (
        f"{measured} of {expected} cells are measured, {max(missing, 0)} missing, {failed} failed; "
        f"{lost} attempts were lost on the way and made up for."
        if missing <= 0
        else f"{measured} of {expected} cells are measured, {missing} missing, {failed} failed, {lost} attempts lost."
    )
    return decide_exact(1, name, missing <= 0 and failed == 0, share, 1.0, "share", detail, _RERUN)


# ---- phase 2: the fit


def fit_explains(
    r2: float | None,
    thresholds: GateThresholds,
    *,
    parametric: bool = True,
    basis: str = "log error within matrices",
    form: str = "",
    refused: tuple[str, float | None] | None = None,
) -> GateResult:
    """R² > 0.7 for the parametric model, > 0.6 where the non-parametric fallback is in use.

    Args:
        r2: cross-validated R² within matrices is the honest one (``fit.cross_validation.r2_log_within``): a scale per
            matrix makes a pooled R² trivial.
        form: the form that is judged.
        refused: the best parametric form and its R², where it falls short and the fallback takes its place.
    """
    name = "fit_explains"
    need = thresholds.fit_r2 if parametric else thresholds.fallback_r2
    if r2 is None:
        return not_measured(2, name, need, "R²", _INTERPOLATE, "no fit is computed, or the error does not vary")
    model = "parametric model" if parametric else "non-parametric fallback" if refused else "non-parametric model"
    model += f" ({form})" if form else ""
    detail = f"The {model} has R² = {r2:.3f} on {basis} (threshold {need:g})."
    if refused is not None:
        other, found = refused
        said = "no R²" if found is None else f"R² = {found:.3f}"
        detail = (
            f"NO-GO for the parametric model: its best form, {other}, has {said} (threshold {thresholds.fit_r2:g}), so "
            f"interpolation takes its place. {detail}"
        )
    return decide_exact(2, name, r2 > need, r2, need, "R²", detail, _INTERPOLATE)


def parameters_physical(
    parameters: Mapping[str, float] | None, *, lows: Mapping[str, float] | None = None
) -> GateResult:
    """β, δ > 0: more bits and more rank must lower the error.

    Args:
        parameters: name → value, of those that must be positive; empty for a non-parametric fit.
        lows: low ends of their intervals; where one is not above zero the sign is not sure and nothing is decided.
    """
    name = "parameters_physical"
    if not parameters:
        what = "the fit has no parameters to check" if parameters is not None else "no fit is computed"
        return not_measured(2, name, 0.0, "", _INTERPOLATE, what)
    smallest = min(parameters, key=lambda p: parameters[p])
    value = parameters[smallest]
    listed = ", ".join(f"{p} = {v:.4g}" for p, v in parameters.items())
    unsure = [p for p in parameters if lows is not None and parameters[p] > 0 and not lows.get(p, -math.inf) > 0]
    if value > 0 and unsure:
        detail = f"{listed}: positive, but the 95 % interval of {', '.join(unsure)} reaches zero or is not known."
        low = (lows or {}).get(unsure[0])
        return GateResult(
            2, name, Verdict.NOT_DECIDABLE, value, 0.0, low, None, "", f"{detail} Measure more configs.", _INTERPOLATE
        )
    detail = f"{listed}: " + ("all positive." if value > 0 else f"{smallest} is not positive.")
    return decide_exact(2, name, value > 0, value, 0.0, "", detail, _INTERPOLATE)


def fit_generalises(
    r2_by_type: Mapping[str, float | None],
    thresholds: GateThresholds,
    *,
    parametric: bool = True,
    layers_by_type: Mapping[str, float | None] | None = None,
) -> GateResult:
    """One model for attention and MLP: each type's R² of errors that the fit has not seen reaches its threshold.

    Args:
        r2_by_type: within matrices, leaving each config out. In sample a scale per matrix, or an interpolation through
            every measurement, would show nothing.
        layers_by_type: the same, leaving each layer out but for one anchor cell a matrix; told, not judged.
    """
    name = "fit_generalises"
    need = thresholds.fit_r2 if parametric else thresholds.fallback_r2
    missing = [kind for kind in ("attention", "mlp") if r2_by_type.get(kind) is None]
    if missing:
        what = f"no R² of left-out configs for {' and '.join(missing)}"
        return not_measured(2, name, need, "R²", _INTERPOLATE, what)
    known = {kind: float(value) for kind, value in r2_by_type.items() if value is not None}
    worst = min(known, key=lambda kind: known[kind])
    listed = ", ".join(f"{kind} {value:.3f}" for kind, value in known.items())
    detail = f"R² by type, of configs that the fit has not seen: {listed} (threshold {need:g}); the lowest is {worst}."
    layers = {kind: value for kind, value in (layers_by_type or {}).items() if value is not None}
    if layers:
        detail += f" Of layers it has not seen: {', '.join(f'{kind} {value:.3f}' for kind, value in layers.items())}."
    return decide_exact(2, name, known[worst] > need, known[worst], need, "R²", detail, _INTERPOLATE)


# ---- phase 3: the allocator


def optimal_differs(*, n_configs: int | None, is_uniform: bool, slack: bool) -> GateResult:
    """The optimal allocation is not uniform. A budget that binds nothing decides nothing."""
    name = "optimal_differs"
    if n_configs is None:
        return not_measured(3, name, 1.0, "configs", _UNIFORM_PAPER, "no allocation is computed")
    if slack:
        detail = (
            "The budget is slack: every matrix has its smallest error, so there was nothing to allocate. "
            "Lower the budget, or offer larger configs."
        )
        return GateResult(
            3, name, Verdict.NOT_DECIDABLE, float(n_configs), 1.0, None, None, "configs", detail, _UNIFORM_PAPER
        )
    detail = f"The optimal allocation uses {n_configs} different configs" + (
        "; with ranks clamped it is the uniform one." if is_uniform else ": it is not uniform."
    )
    return decide_exact(3, name, not is_uniform, float(n_configs), 1.0, "configs", detail, _UNIFORM_PAPER)


def bytes_match(
    *, predicted: int | None, actual: int | None, budget: int, thresholds: GateThresholds, slack: bool = False
) -> GateResult:
    """Bytes on disk lie within ±10 % of the budget and never above it; ours also equal the prediction exactly.

    Without a compressed model the prediction is judged, and the detail says so. A slack budget cannot be reached
    from below by any allocation, so there only the prediction counts.
    """
    name, need = "bytes_match", thresholds.bytes_tolerance_percent
    if predicted is None or budget <= 0:
        return not_measured(3, name, need, "%", _FIX_ALLOCATOR, "no allocation is computed")
    total = predicted if actual is None else actual
    off = 100 * (total - budget) / budget
    told = "not compressed yet" if actual is None else f"{actual:,} on disk"
    detail = f"{predicted:,} bytes predicted, {told}, budget {budget:,}: {off:+.3g} %"
    if actual is not None and actual != predicted:
        detail += f"; prediction and disk differ by {actual - predicted:+,} bytes, which should be none."
        return decide_exact(3, name, False, off, need, "%", detail, _FIX_ALLOCATOR)
    if slack:
        return GateResult(
            3,
            name,
            Verdict.NOT_DECIDABLE,
            off,
            need,
            None,
            None,
            "%",
            f"{detail}. The budget is slack.",
            _FIX_ALLOCATOR,
        )
    return decide_exact(3, name, total <= budget and abs(off) <= need, off, need, "%", f"{detail}.", _FIX_ALLOCATOR)


def allocator_fast(seconds: float | None, thresholds: GateThresholds) -> GateResult:
    """The allocator answers within a minute."""
    name, need = "allocator_fast", thresholds.allocator_seconds
    if seconds is None:
        return not_measured(3, name, need, "s", _SPEED, "no allocation is computed")
    detail = f"The allocation took {seconds:.3g} s (threshold {need:g} s)."
    return decide_exact(3, name, seconds < need, seconds, need, "s", detail, _SPEED)


# ---- phase 4: the scaled validation


def optimal_beats_uniform(
    gain_percent: Estimate | None, thresholds: GateThresholds, *, phase: int = 4, slack: bool = False
) -> GateResult:
    """PPL gain of optimal over uniform at no more bytes: > 3 % in phase 4, > 0 in phase 5; paired interval."""
    if phase not in (4, 5):
        raise ValueError(f"optimal against uniform is a gate of phases 4 and 5, not {phase}")
    need = thresholds.optimal_gain_percent if phase == 4 else 0.0
    name, fallback = "optimal_beats_uniform", _ERROR_MODEL if phase == 4 else _SMALLER
    if gain_percent is None:
        return not_measured(phase, name, need, "%", fallback, "optimal and uniform are not both evaluated")
    result = decide_interval(
        phase, name, gain_percent, need, "%", "The PPL gain of optimal over the best uniform", fallback
    )
    if not slack:
        return result
    return GateResult(
        phase,
        name,
        Verdict.NOT_DECIDABLE,
        result.value,
        need,
        result.low,
        result.high,
        "%",
        f"{result.detail} But the budget is slack, so both sides had what they wanted.",
        fallback,
    )


def prediction_ranks(
    correlation: Estimate | None, thresholds: GateThresholds, *, slope: Estimate | None = None, where: str = ""
) -> GateResult:
    """Predicted KL puts allocations of equal bytes in the order of the KL that they have: Spearman > 0.9, at the low
    end of its interval.

    Args:
        correlation: over allocations.
        slope: of log realised over log predicted KL, told in the detail; 1 is a prediction of the right size.
        where: which of several validations this is, such as "budget 2".
    """
    name, need = "prediction_ranks", thresholds.rank_correlation
    if correlation is None:
        return not_measured(4, name, need, "ρ", _REANCHOR, "no random allocations are validated")
    subject = "Spearman's correlation of predicted and realised KL" + (f" at {where}" if where else "")
    result = decide_interval(4, name, correlation, need, "ρ", subject, _REANCHOR)
    if slope is None:
        return result
    told = f"{slope.value:.3g} (95 % interval {slope.low:.3g} … {slope.high:.3g})"
    return replace(result, detail=f"{result.detail} Realised KL grows with predicted KL to the power {told}.")


def downstream_preserved(changes_percent: Mapping[str, Estimate] | None, thresholds: GateThresholds) -> GateResult:
    """No downstream score falls by more than 2 %, at the low end of its paired interval.

    Args:
        changes_percent: task → change of the score in % of the reference's score, negative where it fell.
    """
    name, need = "downstream_preserved", -thresholds.downstream_loss_percent
    if not changes_percent:
        return not_measured(4, name, need, "%", _GOODHART, "no downstream task is evaluated")
    results = {
        task: decide_interval(4, name, change, need, "%", f"The change of {task}", _GOODHART)
        for task, change in changes_percent.items()
    }
    order = {Verdict.NO_GO: 0, Verdict.NOT_DECIDABLE: 1, Verdict.GO: 2, Verdict.NOT_MEASURED: 3}
    worst = min(results.values(), key=lambda r: (order[r.verdict], r.low if r.low is not None else 0.0))
    return worst


def scaled_fit_explains(r2: float | None, thresholds: GateThresholds) -> GateResult:
    """R² > 0.6 of the error model on the larger model."""
    name, need = "scaled_fit_explains", thresholds.scaled_fit_r2
    if r2 is None:
        return not_measured(4, name, need, "R²", _ERROR_MODEL, "no fit is computed")
    detail = f"The error model has R² = {r2:.3f} on this model (threshold {need:g})."
    return decide_exact(4, name, r2 > need, r2, need, "R²", detail, _ERROR_MODEL)


# ---- phase 5: does it hold everywhere?


def consistent(gains_percent: Mapping[str, Estimate] | None) -> GateResult:
    """The sign of the gain is the same over benchmarks and budgets.

    GO: every interval lies above zero. NO-GO: one lies below while another lies above, or all lie below. Otherwise
    the undecided ones are named. The plan counts an interesting divergence as a result too: see the fallback.

    Args:
        gains_percent: benchmark or budget → gain of optimal over uniform, positive where optimal is better.
    """
    name = "consistent"
    if not gains_percent or len(gains_percent) < 2:
        return not_measured(5, name, 0.0, "%", _GOODHART, "fewer than two benchmarks or budgets are evaluated")
    better = [k for k, e in gains_percent.items() if e.low > 0]
    worse = [k for k, e in gains_percent.items() if e.high < 0]
    open_ = [k for k in gains_percent if k not in better and k not in worse]
    worst = min(gains_percent, key=lambda k: gains_percent[k].value)
    value = gains_percent[worst].value
    detail = f"Better on {_listed(better)}; worse on {_listed(worse)}; undecided on {_listed(open_)}."
    verdict = Verdict.NO_GO if worse else Verdict.NOT_DECIDABLE if open_ else Verdict.GO
    e = gains_percent[worst]
    needed = None
    if verdict is Verdict.NOT_DECIDABLE:
        counts = [samples_needed(gains_percent[k], 0.0) for k in open_]
        needed = None if None in counts else max(c for c in counts if c is not None)
    return GateResult(5, name, verdict, value, 0.0, e.low, e.high, "%", detail, _GOODHART, needed)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
