"""Intervals from per-window losses: of one model, and paired between two. Torch-free.

Windows are the units that are resampled. A mean over tokens is the ratio Σ nll / Σ tokens, so the t interval
linearises it (residual e_i = x_i − estimate · n_i) and the bootstrap resamples whole windows. Windows of one document
are not independent: with few documents the true uncertainty is larger than these intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from compress_core.errors import ConfigError

Method = Literal["t", "bootstrap"]
_RESAMPLES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds that hold it with the given confidence."""

    estimate: float
    low: float
    high: float
    standard_error: float
    n_windows: int
    confidence: float
    method: Method

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def exp(self) -> Interval:
        """The interval of exp(estimate): nats a token to perplexity, or a difference of nats to a ratio."""
        estimate = math.exp(self.estimate)
        return Interval(
            estimate,
            math.exp(self.low),
            math.exp(self.high),
            estimate * self.standard_error,
            self.n_windows,
            self.confidence,
            self.method,
        )

    def minus_one(self) -> Interval:
        """From a ratio to a relative change."""
        return Interval(
            self.estimate - 1,
            self.low - 1,
            self.high - 1,
            self.standard_error,
            self.n_windows,
            self.confidence,
            self.method,
        )


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """How model B's perplexity differs from model A's on the same windows."""

    #: mean loss of B minus mean loss of A, nats a token
    difference: Interval
    #: PPL_B / PPL_A
    ratio: Interval
    #: PPL_B / PPL_A − 1: −0.02 means B's perplexity is 2 % lower
    relative_change: Interval


def mean_interval(
    totals: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    method: Method = "t",
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Interval of Σ totals / Σ counts over windows.

    Raises:
        ConfigError: fewer than two windows, lengths that differ, or a confidence outside (0, 1).
    """
    x, n = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if x.ndim != 1 or x.shape != n.shape or x.size < 2:
        raise ConfigError(f"an interval needs two windows or more, with one count each; got {x.shape} and {n.shape}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, not {confidence}")
    estimate = float(x.sum() / n.sum())
    residuals = x - estimate * n
    error = float(np.sqrt(x.size / (x.size - 1) * np.sum(residuals**2)) / n.sum())
    if method == "t":
        half = float(stdtrit(x.size - 1, 0.5 + confidence / 2)) * error
        return Interval(estimate, estimate - half, estimate + half, error, x.size, confidence, method)
    low, high = _bca(x, n, estimate, confidence, resamples, seed)
    return Interval(estimate, low, high, error, x.size, confidence, method)


def perplexity_interval(
    nll: NDArray[np.float64], n_tokens: NDArray[np.int64], *, confidence: float = 0.95, method: Method = "t"
) -> Interval:
    """Interval of one model's perplexity: that of its mean loss, exponentiated."""
    return mean_interval(nll, n_tokens, confidence=confidence, method=method).exp()


def compare(
    nll_a: NDArray[np.float64],
    nll_b: NDArray[np.float64],
    n_tokens: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    method: Method = "t",
    seed: int = 0,
) -> PairedComparison:
    """Paired comparison: what both models find hard cancels, window by window.

    Raises:
        ConfigError: the two have different numbers of windows.
    """
    if len(nll_a) != len(nll_b):
        raise ConfigError(f"a paired interval needs the same windows: {len(nll_a)} and {len(nll_b)} were given")
    difference = mean_interval(
        np.asarray(nll_b) - np.asarray(nll_a), n_tokens, confidence=confidence, method=method, seed=seed
    )
    ratio = difference.exp()
    return PairedComparison(difference, ratio, ratio.minus_one())


def windows_needed(interval: Interval, effect: float, *, power: float = 0.8) -> int:
    """How many windows of this kind would tell ``effect`` (in the interval's unit) from zero.

    n = ((z_(1−α/2) + z_power) · sd / effect)², with the standard deviation of one window that the interval implies.

    Raises:
        ConfigError: effect 0, or a power outside (0, 1).
    """
    if effect == 0 or not 0 < power < 1:
        raise ConfigError("an effect of 0 needs infinitely many windows; power must lie between 0 and 1")
    deviation = interval.standard_error * math.sqrt(interval.n_windows)
    quantiles = float(ndtri(0.5 + interval.confidence / 2) + ndtri(power))
    return max(2, math.ceil((quantiles * deviation / effect) ** 2))


def _bca(
    x: NDArray[np.float64], n: NDArray[np.float64], estimate: float, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap (Efron 1987), over windows, seeded."""
    rng = np.random.default_rng(seed)
    replicates = np.empty(resamples)
    step = max(1, _RESAMPLES_AT_ONCE // x.size)
    for begin in range(0, resamples, step):
        picks = rng.integers(0, x.size, size=(min(step, resamples - begin), x.size))
        replicates[begin : begin + len(picks)] = x[picks].sum(1) / n[picks].sum(1)
    alphas = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    below = float(np.mean(replicates < estimate) + 0.5 * np.mean(replicates == estimate))
    if 0 < below < 1:
        bias = float(ndtri(below))
        jackknife = (x.sum() - x) / (n.sum() - n)
        centred = jackknife.mean() - jackknife
        spread = float(np.sum(centred**2))
        acceleration = float(np.sum(centred**3) / (6 * spread**1.5)) if spread > 0 else 0.0
        z = bias + ndtri(alphas)
        alphas = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(replicates, alphas)
    return float(low), float(high)
