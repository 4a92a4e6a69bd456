"""Sensitivities from KL anchors."""

from __future__ import annotations

import numpy as np
import pytest

from compress_core.allocate import KLAnchor, estimate_sensitivities, layer_spread
from compress_core.errors import FitError, NonFiniteValues
from compress_core.matrix import PROJECTIONS, MatrixKey

Q0, Q1 = MatrixKey(0, "q"), MatrixKey(1, "q")


def test_anchors_are_averaged_in_log() -> None:
    found = estimate_sensitivities([KLAnchor(Q0, 0.1, 0.2), KLAnchor(Q0, 0.01, 0.08)], shrink=False)[Q0]
    assert found.value == pytest.approx(4.0)  # √(2 · 8)
    assert found.raw == pytest.approx(4.0)
    assert found.n_anchors == 2
    assert found.low < 4 < found.high  # the anchors disagree


def test_anchors_on_the_same_sequences_are_no_independent_witnesses() -> None:
    one = [KLAnchor(Q0, 0.1, 0.2, 0.04)]
    twice = [*one, KLAnchor(Q0, 0.01, 0.02, 0.004)]
    alone, both = (estimate_sensitivities(anchors, shrink=False)[Q0] for anchors in (one, twice))
    assert both.log_se == pytest.approx(alone.log_se) == pytest.approx(0.2)


def test_noise_is_pulled_toward_the_type_and_precision_is_not() -> None:
    rng = np.random.default_rng(0)
    truth = {MatrixKey(i, "up"): float(np.exp(0.2 * rng.normal())) for i in range(40)}
    anchors = [
        KLAnchor(k, 0.1, 0.1 * a * float(np.exp(rng.normal() * 0.5)), 0.05 * a * (1 if k.layer_idx else 1e-6))
        for k, a in truth.items()
    ]
    found = estimate_sensitivities(anchors)
    raw_error = np.mean([np.log(found[k].raw / a) ** 2 for k, a in truth.items()])
    shrunk_error = np.mean([np.log(found[k].value / a) ** 2 for k, a in truth.items()])
    assert shrunk_error < 0.6 * raw_error
    assert found[MatrixKey(0, "up")].own_weight > 0.99
    assert found[MatrixKey(1, "up")].own_weight < 0.9


def test_projections_are_shrunk_apart() -> None:
    anchors = [
        KLAnchor(MatrixKey(i, p), 0.1, 0.1 * a, 0.02 * a) for i in range(8) for p, a in (("q", 1.0), ("v", 50.0))
    ]
    found = estimate_sensitivities(anchors)
    assert found[MatrixKey(3, "q")].value == pytest.approx(1.0)
    assert found[MatrixKey(3, "v")].value == pytest.approx(50.0)


@pytest.mark.parametrize("kl", [0.0, -0.01, 0.002])
def test_kl_not_told_from_zero_is_floored_and_uncertain(kl: float) -> None:
    found = estimate_sensitivities([KLAnchor(Q0, 0.1, kl, 0.01)])[Q0]
    assert found.value == pytest.approx(0.05)  # half a standard error over the error
    assert found.n_floored == 1
    assert found.high / found.low > 10


def test_no_standard_error_floors_at_rounding() -> None:
    assert estimate_sensitivities([KLAnchor(Q0, 0.1, -1.0)])[Q0].value == pytest.approx(1e-8)


@pytest.mark.parametrize("unknown", [None, float("inf")])
def test_an_unknown_standard_error_is_not_taken_as_exact(unknown: float | None) -> None:
    found = estimate_sensitivities([KLAnchor(Q0, 0.1, 0.3, unknown)])[Q0]
    assert found.value == pytest.approx(3.0)
    assert found.high / found.low > 10
    exact = estimate_sensitivities([KLAnchor(Q0, 0.1, 0.3, 0.0)])[Q0]
    assert exact.low == exact.high == exact.value


def test_zero_error_says_nothing_and_takes_the_type_mean() -> None:
    anchors = [KLAnchor(Q0, 0.0, 0.0), *(KLAnchor(MatrixKey(i, "q"), 0.1, 0.3, 0.01) for i in range(1, 5))]
    found = estimate_sensitivities(anchors)[Q0]
    assert found.value == pytest.approx(3.0)
    assert found.raw is None
    assert found.own_weight == 0


def test_refusals() -> None:
    with pytest.raises(FitError, match="no KL anchor"):
        estimate_sensitivities([])
    with pytest.raises(FitError, match="zero error"):
        estimate_sensitivities([KLAnchor(Q0, 0.0, 1.0)])
    with pytest.raises(NonFiniteValues, match=r"0\.q"):
        estimate_sensitivities([KLAnchor(Q0, float("nan"), 1.0)])
    with pytest.raises(NonFiniteValues, match=r"0\.q"):
        estimate_sensitivities([KLAnchor(Q0, -0.1, 1.0)])
    for se in (-1.0, float("nan")):
        with pytest.raises(NonFiniteValues, match=r"0\.q"):
            estimate_sensitivities([KLAnchor(Q0, 0.1, 1.0, se)])


def anchors_of(log_by_layer: np.ndarray, noise: float, seed: int) -> list[KLAnchor]:
    rng = np.random.default_rng(seed)
    return [
        KLAnchor(MatrixKey(i, p), 0.1, float(0.1 * np.exp(x + noise * rng.normal())), float(0.1 * np.exp(x) * noise))
        for i, x in enumerate(log_by_layer)
        for p in PROJECTIONS
    ]


def test_layers_that_differ_spread() -> None:
    spread = layer_spread(estimate_sensitivities(anchors_of(np.linspace(0, np.log(8), 6), 0.05, 0)))
    assert spread.low <= spread.ratio <= spread.high
    assert spread.low > 3
    assert spread.ratio == pytest.approx(8, rel=0.25)


def test_noise_alone_does_not_spread() -> None:
    """Equal layers with noisy anchors: the low end covers the true ratio of 1 in nearly all repetitions."""
    lows = [
        layer_spread(estimate_sensitivities(anchors_of(np.zeros(12), 0.8, seed), shrink=False), draws=400).low
        for seed in range(20)
    ]
    assert np.median(lows) < 1.5
    assert max(lows) < 3


def test_spread_needs_two_layers() -> None:
    with pytest.raises(FitError, match="two layers"):
        layer_spread(estimate_sensitivities([KLAnchor(Q0, 0.1, 0.1)]))
    assert layer_spread(
        estimate_sensitivities([KLAnchor(Q0, 0.1, 0.1), KLAnchor(Q1, 0.1, 0.4)])
    ).ratio == pytest.approx(4)
