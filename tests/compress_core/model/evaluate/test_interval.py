"""Intervals: known values, coverage by simulation, and what pairing buys."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from compress_core.errors import ConfigError
from compress_core.evaluate.interval import compare, mean_interval, perplexity_interval, windows_needed

RNG = np.random.default_rng(0)


def test_t_interval_of_equal_windows_is_the_textbooks() -> None:
    x = RNG.normal(2.0, 0.3, 25)
    interval = mean_interval(x * 100, np.full(25, 100))
    expected = stats.t.interval(0.95, 24, x.mean(), stats.sem(x))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.standard_error == pytest.approx(stats.sem(x))


def test_bca_agrees_with_scipy() -> None:
    x = RNG.exponential(1.0, 60)
    interval = mean_interval(x, np.ones(60, dtype=np.int64), method="bootstrap", resamples=20000)
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=0.02)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_coverage(method: str) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        n = rng.integers(50, 150, 40)
        x = n * rng.normal(1.5, 0.4, 40)
        interval = mean_interval(x, n, method=method, resamples=500)
        hits += interval.low <= 1.5 <= interval.high
    assert 0.90 < hits / 300 < 0.985


def test_pairing_cancels_what_both_find_hard() -> None:
    difficulty = RNG.normal(3.0, 1.0, 50) * 255
    n = np.full(50, 255)
    a = difficulty
    b = difficulty + 255 * RNG.normal(-0.02, 0.01, 50)
    comparison = compare(a, b, n)
    assert comparison.difference.excludes_zero
    assert comparison.relative_change.estimate == pytest.approx(math.exp(comparison.difference.estimate) - 1)
    assert comparison.relative_change.high < 0
    ppl_a, ppl_b = perplexity_interval(a, n), perplexity_interval(b, n)
    assert comparison.ratio.estimate == pytest.approx(ppl_b.estimate / ppl_a.estimate)
    assert ppl_a.low < ppl_b.estimate < ppl_a.high  # unpaired, the two cannot be told apart


def test_equal_models_differ_by_nothing() -> None:
    x = RNG.normal(1, 1, 10)
    for method in ("t", "bootstrap"):
        interval = compare(x, x, np.full(10, 9), method=method).difference
        assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
        assert not interval.excludes_zero


def test_bootstrap_is_seeded() -> None:
    x, n = RNG.normal(1, 1, 30), np.full(30, 9)
    first = mean_interval(x, n, method="bootstrap", seed=1)
    assert first == mean_interval(x, n, method="bootstrap", seed=1)
    assert first != mean_interval(x, n, method="bootstrap", seed=2)


def test_windows_needed_reaches_its_power() -> None:
    rng = np.random.default_rng(2)
    pilot = mean_interval(rng.normal(0.05, 0.2, 4000), np.ones(4000, dtype=np.int64))
    needed = windows_needed(pilot, 0.05)
    assert needed == pytest.approx((1.96 + 0.8416) ** 2 * 0.04 / 0.0025, rel=0.08)
    found = sum(
        mean_interval(rng.normal(0.05, 0.2, needed), np.ones(needed, dtype=np.int64)).excludes_zero for _ in range(300)
    )
    assert 0.7 < found / 300 < 0.9


def test_refusals() -> None:
    one = np.ones(1)
    with pytest.raises(ConfigError, match="two windows"):
        mean_interval(one, one.astype(np.int64))
    with pytest.raises(ConfigError, match="same windows"):
        compare(np.ones(3), np.ones(4), np.ones(4, dtype=np.int64))
    with pytest.raises(ConfigError, match="confidence"):
        mean_interval(np.ones(3), np.ones(3, dtype=np.int64), confidence=95)
    interval = mean_interval(np.arange(3.0), np.ones(3, dtype=np.int64))
    with pytest.raises(ConfigError):
        windows_needed(interval, 0.0)


def test_needs_no_torch() -> None:
    code = "import sys, compress_core.evaluate.interval; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
