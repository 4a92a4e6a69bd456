"""Headline: uniform against optimal at equal bytes, in a few honest numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from compress_core.analyze.verdict import Estimate


def gain_from_nll(delta: float, low: float, high: float, *, n: int, n_needed: int | None = None) -> Estimate:
    """PPL gain in % from the paired mean difference of NLL (candidate − reference, nats a token) and its interval.

    gain = 100·(1 − PPL_candidate/PPL_reference) = 100·(1 − exp(delta)). A negative difference is a gain: the ends swap.
    """
    return Estimate(
        value=-100 * math.expm1(delta),
        low=-100 * math.expm1(high),
        high=-100 * math.expm1(low),
        n=n,
        n_needed=n_needed,
    )


@dataclass(frozen=True, slots=True)
class Contender:
    """One model of the comparison."""

    #: "original", "best uniform", "optimal", "round to nearest", "rank 0", "manual", …
    name: str
    perplexity: float
    #: stored bytes of its matrices
    nbytes: int
    bits_per_weight: float
    #: 95 % interval of the perplexity itself; wide, because texts differ: compare by the paired gain
    low: float | None = None
    high: float | None = None


def rival_remark(optimal: Contender, rival: Contender, gain_percent: Estimate) -> str | None:
    """What must be said of a baseline that optimal should beat and does not; None where it beats it.

    Args:
        gain_percent: paired PPL gain of optimal over the rival, %.
    """
    g = gain_percent
    if g.low > 0:
        return None
    interval = f"95 % interval {-g.high:+.2f} … {-g.low:+.2f} %"
    where = f"at {rival.nbytes:,} bytes"
    if g.high < 0:
        return (
            f"{rival.name} {where} is better than {optimal.name} by {-g.value:.2f} % perplexity ({interval}): "
            "the objective misjudges this model; ship the better one."
        )
    return f"{rival.name} {where} is not distinguishable from {optimal.name} ({interval})."


@dataclass(frozen=True, slots=True)
class Guard:
    """What the select split said, before the report split was read: an optimum that did not win there is not kept."""

    #: whether the optimum beat the best uniform config there, its whole interval above zero
    keeps_optimal: bool
    #: its paired PPL gain over the best uniform config there, %; None where nothing could compete with that
    gain_percent: Estimate | None = None
    #: of the interval: it counts how many optima had a chance
    confidence: float = 0.95
    #: name of the optimum that was judged there, where it is another than the headline's
    challenger: str | None = None

    def reason(self, optimal: str, uniform: str) -> str:
        """Why the one or the other is kept, after "is recommended"."""
        g, judged = self.gain_percent, self.challenger or optimal
        if g is None:
            return f"on the select split nothing could compete with {uniform}"
        interval = (
            f"{g.value:+.2f} %, {100 * self.confidence:.3g} % interval {g.low:+.2f} … {g.high:+.2f} %, {g.n} windows"
        )
        if self.keeps_optimal:
            return f"{optimal} won on the select split, too ({interval})"
        return f"on the select split {judged} did not beat {uniform} beyond doubt ({interval})"


@dataclass(frozen=True, slots=True)
class Headline:
    """What a study found, to be shown in one breath."""

    uniform: Contender
    optimal: Contender
    #: paired PPL gain of optimal over uniform, %
    gain_percent: Estimate
    original: Contender | None = None
    #: None where nothing was checked on the select split
    guard: Guard | None = None
    #: paired PPL gain of the original over uniform, %
    ceiling_percent: Estimate | None = None

    @property
    def fair(self) -> bool:
        """Optimal takes no more bytes than uniform."""
        return self.optimal.nbytes <= self.uniform.nbytes

    @property
    def recommended(self) -> str:
        """The allocation to ship: what the guard keeps, unless the report split shows that it loses; without a guard
        optimal only where the whole interval says that it is better."""
        if self.guard is None:
            keeps = self.gain_percent.low > 0
        else:
            keeps = self.guard.keeps_optimal and self.gain_percent.high >= 0
        return self.optimal.name if self.fair and keeps else self.uniform.name

    @property
    def excess_removed(self) -> float | None:
        """Share of uniform's excess NLL over the original that optimal removes; None where there is no excess.

        1 − ln(PPL_optimal/PPL_original) / ln(PPL_uniform/PPL_original)
        """
        if self.original is None:
            return None
        excess = math.log(self.uniform.perplexity / self.original.perplexity)
        if excess <= 0:
            return None
        return 1 - math.log(self.optimal.perplexity / self.original.perplexity) / excess

    def sentence(self) -> str:
        """The finding as one sentence, and what to ship as another."""
        g = self.gain_percent
        interval = f"95 % interval {g.low:+.2f} … {g.high:+.2f} %, {g.n} windows"
        if not self.fair:
            return (
                f"{self.optimal.name} takes {self.optimal.nbytes - self.uniform.nbytes:,} bytes more than "
                f"{self.uniform.name}, so nothing can be claimed (gain {g.value:+.2f} %, {interval})."
            )
        where = f"at {self.optimal.nbytes:,} of {self.uniform.nbytes:,} bytes"
        if g.low == g.high == 0:
            return f"{self.optimal.name} and {self.uniform.name} are one and the same model {where}: neither can win."
        if g.low > 0:
            found = f"{self.optimal.name} beats {self.uniform.name} by {g.value:.2f} % perplexity {where} ({interval})"
        elif g.high < 0:
            found = (
                f"{self.optimal.name} loses to {self.uniform.name} by {-g.value:.2f} % perplexity {where} ({interval})"
            )
        else:
            found = (
                f"{self.optimal.name} is not shown to beat {self.uniform.name} {where}: gain {g.value:+.2f} % "
                f"({interval})"
            )
        return f"{found}{self._advice()}."

    def _advice(self) -> str:
        g = self.gain_percent
        if self.guard is None:
            if g.low > 0:
                return ""
            more = "" if g.high < 0 else ", or evaluate more text"
            return f"{':' if g.high < 0 else ';'} use {self.uniform.name}{more}"
        if self.guard.keeps_optimal and g.high < 0:
            return (
                f". {_capital(self.uniform.name)} is recommended, although {self.optimal.name} won on the select split"
            )
        return (
            f". {_capital(self.recommended)} is recommended: {self.guard.reason(self.optimal.name, self.uniform.name)}"
        )

    def ceiling(self) -> str | None:
        """What no allocation can be expected to exceed: the gain of the original itself over uniform."""
        c = self.ceiling_percent
        if c is None:
            return None
        return (
            f"The original itself would gain {c.value:.2f} % over {self.uniform.name} (95 % interval {c.low:+.2f} … "
            f"{c.high:+.2f} %): no allocation can be expected to gain more."
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "fair": self.fair,
            "recommended": self.recommended,
            "excess_removed": self.excess_removed,
            "sentence": self.sentence(),
            "ceiling": self.ceiling(),
        }


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
