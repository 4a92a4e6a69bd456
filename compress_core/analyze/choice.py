"""The guard: which of several allocations to keep after all were tried on held-out text. Torch-free.

The best uniform config, by its loss on that text and not by any objective, is what every other one has to beat: the
paired interval of the difference must lie above zero, at a confidence that counts how many challengers had a chance.
Otherwise uniform is kept, and said to be.

Shapes: N windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.analyze.headline import gain_from_nll
from compress_core.analyze.verdict import Estimate
from compress_core.errors import ConfigError
from compress_core.evaluate.interval import compare, windows_needed

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An allocation that was tried on N windows."""

    name: str
    #: of its matrices
    nbytes: int
    #: (N,) nats, summed over each window's predicted tokens
    nll_N: Array
    #: one config for all matrices
    uniform: bool = False
    #: False: it is there for comparison alone, as random allocations are
    may_win: bool = True
    #: bytes that its matrices were allowed; None: those that they have
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which one to keep, and why."""

    #: number of the candidate that is kept
    winner: int
    #: number of the best uniform one by held-out loss; None where none was tried
    uniform: int | None
    #: number of the best one that is not uniform and may win; None where there is none
    challenger: int | None
    #: paired PPL gain of the challenger over uniform, %, at ``confidence``
    gain_percent: Estimate | None
    #: 1 − 5 % / number of challengers
    confidence: float
    #: the guard's verdict, for people
    sentence: str


def choose(candidates: Sequence[Candidate], n_tokens_N: NDArray[np.int64]) -> Choice:
    """Apply the guard.

    A challenger of more bytes than any uniform candidate was allowed does not win: that would prove nothing.

    Args:
        n_tokens_N: predicted tokens of each window.

    Raises:
        ConfigError: no candidate may win, or fewer than two windows.
    """
    tokens = np.asarray(n_tokens_N, dtype=np.int64)
    able = [number for number, candidate in enumerate(candidates) if candidate.may_win]
    if not able:
        raise ConfigError("none of the allocations may be chosen: random ones are there for comparison alone")

    def loss(number: int) -> float:
        return float(np.sum(candidates[number].nll_N))

    uniforms = [number for number in able if candidates[number].uniform]
    others = [number for number in able if not candidates[number].uniform]
    if not uniforms:
        best = min(others, key=loss)
        sentence = (
            f"{candidates[best].name} has the lowest loss, but no uniform allocation was tried beside it: nothing "
            "guards against an allocation that is worse than one config everywhere."
        )
        return Choice(best, None, best, None, 0.95, sentence)
    uniform = min(uniforms, key=loss)
    reference = candidates[uniform]
    allowed = max(candidates[number].budget or candidates[number].nbytes for number in uniforms)
    fair = [number for number in others if candidates[number].nbytes <= allowed]
    if not fair:
        sentence = f"{reference.name} has the lowest loss of the uniform allocations."
        if others:
            sentence = (
                f"Every other allocation takes more bytes than {reference.name} was allowed ({allowed:,}), so "
                f"nothing can be claimed for them: {reference.name} is recommended."
            )
        return Choice(uniform, uniform, None, None, 0.95, sentence)
    challenger = min(fair, key=loss)
    confidence = 1 - 0.05 / len(fair)
    gain = paired_gain(candidates[challenger].nll_N, reference.nll_N, tokens, confidence=confidence)
    won = gain.low > 0
    sentence = _sentence(candidates[challenger].name, reference.name, gain, confidence)
    return Choice(challenger if won else uniform, uniform, challenger, gain, confidence, sentence)


def paired_gain(
    nll_N: Array, reference_N: Array, n_tokens_N: NDArray[np.int64], *, confidence: float = 0.95
) -> Estimate:
    """PPL gain over a reference on the same windows, %, with its paired interval.

    ``n_needed`` is how many windows would tell a gain of this size from none; None where the two are equal.

    Raises:
        ConfigError: fewer than two windows, or different numbers of them.
    """
    found = compare(reference_N, nll_N, n_tokens_N, confidence=confidence).difference
    needed = None if found.estimate == 0 else windows_needed(found, found.estimate)
    return gain_from_nll(found.estimate, found.low, found.high, n=found.n_windows, n_needed=needed)


def _sentence(name: str, uniform: str, gain: Estimate, confidence: float) -> str:
    interval = f"{100 * confidence:.3g} % interval {gain.low:+.2f} … {gain.high:+.2f} %, {gain.n} windows"
    if gain.low == gain.high == 0:
        return f"{name} and {uniform} are one and the same model: {uniform} is recommended."
    if gain.low > 0:
        return f"On held-out text {name} beats {uniform} by {gain.value:.2f} % perplexity ({interval}): it is kept."
    if gain.high < 0:
        return (
            f"On held-out text {name} loses to {uniform} by {-gain.value:.2f} % perplexity ({interval}): {uniform} is "
            "recommended."
        )
    more = f"; about {gain.n_needed:,} windows would tell" if gain.n_needed else ""
    return (
        f"On held-out text {name} is not shown to beat {uniform}: gain {gain.value:+.2f} % perplexity ({interval}"
        f"{more}). {uniform} is recommended."
    )
