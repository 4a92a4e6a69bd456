"""Verdict and GateResult: what a gate says, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """GO and NO-GO are claims that the numbers support; the other two say why none can be made."""

    GO = "GO"
    NO_GO = "NO-GO"
    #: measured, but the evidence does not decide: too few samples, a slack budget
    NOT_DECIDABLE = "NOT DECIDABLE"
    NOT_MEASURED = "NOT MEASURED"


@dataclass(frozen=True, slots=True)
class GateResult:
    """One criterion of one phase, decided."""

    phase: int
    #: stable identifier, e.g. "sensitivity_varies"
    name: str
    verdict: Verdict
    #: the measured number; None where there is none
    value: float | None
    #: what it is compared with
    threshold: float | None
    #: 95 % interval of ``value`` where it is noisy
    low: float | None
    high: float | None
    #: of value, threshold, low and high: "×", "%", "R²", "s", …
    unit: str
    #: one sentence for people: the numbers and what follows
    detail: str
    #: what the plan does on NO-GO
    fallback: str
    #: samples that would decide, where the verdict is NOT DECIDABLE for want of them
    needed_samples: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what is not finite becomes None."""
        out = asdict(self)
        out["verdict"] = str(self.verdict)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A noisy number with its interval, as the caller measured it."""

    value: float
    low: float
    high: float
    #: samples behind it (windows, items, sequences)
    n: int
    #: samples that would bring the interval off the threshold; None: let the gate extrapolate with 1/√n
    n_needed: int | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"an estimate must lie within its interval: {self.low} ≤ {self.value} ≤ {self.high} fails")


def samples_needed(estimate: Estimate, threshold: float) -> int | None:
    """Samples at which an interval that shrinks as 1/√n would no longer hold the threshold; None where none would do.

    Uses the half width on the side of the threshold and the caller's own count where given.
    """
    if estimate.n_needed is not None:
        return estimate.n_needed
    distance = abs(estimate.value - threshold)
    half = estimate.value - estimate.low if threshold < estimate.value else estimate.high - estimate.value
    if distance == 0 or not math.isfinite(half / distance):
        return None
    return math.ceil(estimate.n * (half / distance) ** 2)
