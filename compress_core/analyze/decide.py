"""The two rules behind the gates: a plain number against a threshold, and an interval against a threshold."""

from __future__ import annotations

import math

from compress_core.analyze.verdict import Estimate, GateResult, Verdict, samples_needed


def not_measured(phase: int, name: str, threshold: float | None, unit: str, fallback: str, what: str) -> GateResult:
    """The result of a gate whose data is not there."""
    detail = f"Not measured: {what}."
    return GateResult(phase, name, Verdict.NOT_MEASURED, None, threshold, None, None, unit, detail, fallback)


def decide_exact(
    phase: int,
    name: str,
    passed: bool,
    value: float,
    threshold: float | None,
    unit: str,
    detail: str,
    fallback: str,
) -> GateResult:
    """A gate on a number without noise. A value that is not finite decides nothing."""
    verdict = Verdict.GO if passed else Verdict.NO_GO
    if not math.isfinite(value):
        verdict = Verdict.NOT_DECIDABLE
        detail = f"The measured value is {value}, which decides nothing. {detail}"
    return GateResult(phase, name, verdict, value, threshold, None, None, unit, detail, fallback)


def decide_interval(
    phase: int,
    name: str,
    estimate: Estimate,
    threshold: float,
    unit: str,
    subject: str,
    fallback: str,
) -> GateResult:
    """GO if the whole interval lies above the threshold, NO-GO if below, otherwise NOT DECIDABLE.

    On NOT DECIDABLE ``needed_samples`` says how many samples would decide if the estimate stays where it is.
    """
    sep = "" if unit in ("%", "×") else " "
    numbers = (
        f"{subject} is {estimate.value:.3g}{sep}{unit} "
        f"(95 % interval {estimate.low:.3g} … {estimate.high:.3g}, n = {estimate.n}); "
        f"the threshold is {threshold:g}{sep}{unit}"
    )
    needed: int | None = None
    if estimate.low > threshold:
        verdict, verdict_text = Verdict.GO, "the whole interval lies above it."
    elif estimate.high < threshold:
        verdict, verdict_text = Verdict.NO_GO, "the whole interval lies below it."
    else:
        verdict = Verdict.NOT_DECIDABLE
        needed = samples_needed(estimate, threshold)
        verdict_text = "the interval holds the threshold; " + (
            f"about {needed} samples would decide." if needed else "no number of samples can be named."
        )
    return GateResult(
        phase,
        name,
        verdict,
        estimate.value,
        threshold,
        estimate.low,
        estimate.high,
        unit,
        f"{numbers}: {verdict_text}",
        fallback,
        needed,
    )
