"""Predicted against realised KL: planted relations are found, within their intervals, and told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from compress_core.analyze.calibration import check_calibration, near_bytes, optimism
from compress_core.errors import ConfigError

Array = NDArray[np.float64]


def _planted(
    n: int, *, seed: int, slope: float = 1.0, kappa: float = 1.2, residual: float = 0.04, spread: float = 0.3
) -> tuple[Array, Array]:
    """Allocations with log realised = log κ + slope · log predicted + noise, on 24 windows that are unequally hard."""
    rng = np.random.default_rng(seed)
    u = rng.normal(scale=spread, size=n)
    log_realised = math.log(kappa) + slope * u + rng.normal(scale=residual, size=n)
    hard_N = np.exp(rng.normal(scale=0.5, size=24))
    own_AN = np.exp(rng.normal(scale=0.1, size=(n, 24)))
    return 0.05 * np.exp(u), 0.05 * np.exp(log_realised)[:, None] * (hard_N / math.exp(0.125)) * own_AN


def test_a_planted_relation_is_found() -> None:
    predicted, realised = _planted(40, seed=1)
    check = check_calibration(predicted, realised)
    assert check.n == 40
    assert check.spearman is not None
    assert check.spearman.value == pytest.approx(spearmanr(predicted, realised.mean(1)).statistic)
    assert check.spearman.value > 0.95
    assert check.log_slope is not None
    slope, intercept = np.polyfit(np.log(predicted), np.log(realised.mean(1)), 1)
    assert check.log_slope.value == pytest.approx(slope)
    assert check.intercept == pytest.approx(intercept)
    assert check.residual_sd is not None
    residuals = np.log(realised.mean(1)) - slope * np.log(predicted) - intercept
    assert check.residual_sd.value == pytest.approx(math.sqrt(np.square(residuals).sum() / 38))
    assert check.calibrated is True
    assert check.passes is True
    assert "is calibrated at this budget" in check.sentence


def test_intervals_cover_what_was_planted() -> None:
    covered = np.zeros(2)
    for seed in range(60):
        check = check_calibration(*_planted(20, seed=seed, residual=0.1), resamples=400, seed=seed)
        assert check.log_slope is not None
        assert check.kappa is not None
        covered += (check.log_slope.low <= 1.0 <= check.log_slope.high, check.kappa.low <= 1.2 <= check.kappa.high)
    # 95 % of 60 are 57, with a standard deviation of 1.7
    assert 51 <= covered[0] <= 60
    assert 51 <= covered[1] <= 60


@pytest.mark.parametrize(("slope", "residual"), [(0.4, 0.04), (1.8, 0.04), (1.0, 0.35)])
def test_a_broken_prediction_fails(slope: float, residual: float) -> None:
    check = check_calibration(*_planted(40, seed=2, slope=slope, residual=residual))
    assert check.calibrated is False
    assert check.passes is False
    assert check.needed is None
    assert "is not calibrated" in check.sentence


def test_few_allocations_do_not_decide_and_say_how_many_would() -> None:
    check = check_calibration(*_planted(8, seed=2, residual=0.08))
    assert check.calibrated is None
    assert check.needed is not None
    assert 8 < check.needed < 1000
    assert f"about {check.needed} allocations would decide" in check.sentence
    decided = check_calibration(*_planted(2 * check.needed, seed=2, residual=0.08))
    assert decided.calibrated is True


def test_windows_are_a_source_of_noise_too() -> None:
    predicted, realised = _planted(30, seed=5)
    noise = np.exp(np.random.default_rng(6).normal(scale=1.0, size=realised.shape[1]))
    wide = check_calibration(predicted, realised * noise / noise.mean())
    narrow = check_calibration(predicted, np.repeat(realised.mean(1)[:, None], 24, axis=1))
    assert wide.kappa is not None
    assert narrow.kappa is not None
    assert wide.kappa.high - wide.kappa.low > 2 * (narrow.kappa.high - narrow.kappa.low)


def test_an_unrelated_prediction_has_no_rank_correlation() -> None:
    rng = np.random.default_rng(7)
    check = check_calibration(np.exp(rng.normal(size=40)), np.exp(rng.normal(size=(40, 8))))
    assert check.spearman is not None
    assert check.spearman.low < 0 < check.spearman.high
    assert check.calibrated is False


def test_the_same_seed_gives_the_same_interval() -> None:
    data = _planted(12, seed=8)
    assert check_calibration(*data, seed=3) == check_calibration(*data, seed=3)
    assert check_calibration(*data, seed=3) != check_calibration(*data, seed=4)


def test_what_cannot_be_checked_says_so() -> None:
    predicted, realised = _planted(5, seed=9)
    few = check_calibration(predicted[:3], realised[:3])
    assert few.calibrated is few.passes is few.spearman is None
    assert "3 allocations have a prediction" in few.sentence
    same = check_calibration(np.full(5, 0.1), realised)
    assert same.log_slope is None
    assert "one and the same" in same.sentence
    realised[0] = 0.0
    assert check_calibration(predicted, realised).n == 4


@pytest.mark.parametrize(
    ("predicted", "realised"),
    [
        (np.ones(3), np.ones((4, 8))),
        (np.ones(4), np.ones((4, 1))),
        (np.array([1.0, np.nan, 1, 1]), np.ones((4, 8))),
        (-np.ones(4), np.ones((4, 8))),
    ],
)
def test_what_makes_no_sense_is_refused(predicted: Array, realised: Array) -> None:
    with pytest.raises(ConfigError):
        check_calibration(predicted, realised)


def test_the_winners_curse_is_seen_beside_unchosen_allocations() -> None:
    rng = np.random.default_rng(10)
    predicted = np.exp(rng.normal(scale=0.2, size=20))
    realised = 1.2 * predicted * np.exp(rng.normal(scale=0.05, size=20))
    cursed = optimism(0.5, 0.5 * 1.2 * 1.4, list(predicted), list(realised))
    assert cursed is not None
    assert cursed.others == pytest.approx(1.2, rel=0.05)
    assert cursed.gap == pytest.approx(0.4, abs=0.06)
    assert cursed.low > 0
    fair = optimism(0.5, 0.5 * 1.2, list(predicted), list(realised))
    assert fair is not None
    assert fair.low < 0 < fair.high
    assert optimism(0.5, 0.6, [0.1, 0.2], [0.1, 0.2]) is None
    assert optimism(0.5, 0.0, list(predicted), list(realised)) is None


def test_equal_bytes_are_within_two_percent_of_the_largest() -> None:
    assert near_bytes([1000, 980, 979, 1000]) == [0, 1, 3]
    assert near_bytes([]) == []


def test_few_allocations_alone_ask_for_no_repair() -> None:
    """Predictions that hold: the point estimates of 4 allocations fail often, which is no reason to measure anew."""
    rng = np.random.default_rng(0)
    n_failed = 0
    for seed in range(12):
        predicted = np.exp(0.3 * rng.normal(size=4))
        realised = (predicted * np.exp(0.1 * rng.normal(size=4)))[:, None] * np.exp(0.1 * rng.normal(size=(4, 16)))
        check = check_calibration(predicted, realised, resamples=200, seed=seed)
        n_failed += check.passes is False
        assert not check.failed
    assert n_failed >= 3
    unrelated = check_calibration(np.arange(1.0, 9.0), np.exp(rng.normal(size=(8, 1))) * np.ones((8, 4)), resamples=200)
    assert unrelated.passes is False
    assert unrelated.failed
