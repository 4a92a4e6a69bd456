"""Sensitivities from KL anchors."""

from __future__ import annotations

import numpy as np
import pytest

from compress_core.allocate import KLAnchor, class_sensitivities, estimate_sensitivities, layer_spread
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


# --- the same sequences for all


def on_sequences(matrix: MatrixKey, kl_N: np.ndarray, error: float = 0.1, low_rank: bool | None = None) -> KLAnchor:
    """An anchor with its KL for each sequence."""
    se = float(kl_N.std(ddof=1) / np.sqrt(kl_N.size))
    return KLAnchor(matrix, error, float(kl_N.mean()), se, tuple(kl_N.tolist()), low_rank)


def test_the_bootstrap_agrees_with_theory() -> None:
    kl_N = np.random.default_rng(3).lognormal(sigma=0.4, size=64)
    found = estimate_sensitivities([on_sequences(Q0, kl_N)])[Q0]
    assert found.raw_log_se == pytest.approx(kl_N.std(ddof=1) / np.sqrt(64) / kl_N.mean(), rel=0.1)
    again = estimate_sensitivities([on_sequences(Q0, kl_N)])[Q0]
    assert again == found
    # two anchors that err together do not average out, two that err apart do
    other_N = np.random.default_rng(4).lognormal(sigma=0.4, size=64)
    other_N *= kl_N.mean() / other_N.mean()
    together = estimate_sensitivities([on_sequences(Q0, kl_N), on_sequences(Q0, kl_N / 3, 0.1 / 3)])[Q0]
    apart = estimate_sensitivities([on_sequences(Q0, kl_N), on_sequences(Q0, other_N)])[Q0]
    assert together.raw_log_se == pytest.approx(found.raw_log_se, rel=0.01)
    assert apart.raw_log_se < 0.85 * together.raw_log_se


def hard_and_easy(n_layers: int, log_a: np.ndarray, noise: float, seed: int) -> list[KLAnchor]:
    """Sequences that are hard for all matrices alike, and a little noise of each matrix's own."""
    rng = np.random.default_rng(seed)
    hardness = rng.lognormal(sigma=1.0, size=16)
    return [
        on_sequences(MatrixKey(i, p), 0.1 * np.exp(log_a[i]) * hardness * rng.lognormal(sigma=noise, size=16))
        for i in range(n_layers)
        for p in PROJECTIONS
    ]


def test_noise_that_all_matrices_share_neither_shrinks_nor_spreads() -> None:
    anchors = hard_and_easy(6, np.linspace(0, np.log(4), 6), 0.05, 0)
    found = estimate_sensitivities(anchors)
    # each value is uncertain, what tells the matrices apart is not
    assert all(value.log_se > 0.15 for value in found.values())
    assert all(value.own_weight > 0.98 for value in found.values())
    without = estimate_sensitivities([KLAnchor(a.matrix, a.error, a.kl, a.kl_se) for a in anchors])
    assert all(without[key].own_weight < found[key].own_weight for key in found)
    jointly, apart = layer_spread(found, anchors), layer_spread(found)
    assert jointly.ratio == apart.ratio == pytest.approx(4, rel=0.1)
    assert jointly.low > 3.7
    assert apart.low < 3.3


def test_noise_of_each_matrix_s_own_still_widens() -> None:
    """Equal layers: the low end is next to 1, whatever the sequences share."""
    lows = [
        layer_spread(estimate_sensitivities(anchors), anchors, draws=400).low
        for seed in range(20)
        if (anchors := hard_and_easy(8, np.zeros(8), 1.0, seed))
    ]
    assert np.median(lows) < 1.05
    assert sum(low < 1.3 for low in lows) >= 18
    assert max(lows) < 3


def test_sequences_that_differ_are_not_resampled_together() -> None:
    rng = np.random.default_rng(0)
    long, short = on_sequences(Q0, rng.lognormal(size=16)), on_sequences(Q1, rng.lognormal(size=8))
    found = estimate_sensitivities([long, short], shrink=False)
    plain = [KLAnchor(a.matrix, a.error, a.kl, a.kl_se) for a in (long, short)]
    assert found == estimate_sensitivities(plain, shrink=False)


def test_a_floor_stays_uncertain_whatever_the_sequences_say() -> None:
    found = estimate_sensitivities([on_sequences(Q0, np.array([1.0, -1.0, 2.0, -2.1]))])[Q0]
    assert found.n_floored == 1
    assert found.raw_log_se == pytest.approx(1.0)


def test_cells_with_and_without_low_rank_have_their_own() -> None:
    rng = np.random.default_rng(1)
    anchors = []
    for layer in range(4):
        for projection, ratio in (("q", 2.0), ("v", 1.0)):
            kl_N = rng.lognormal(sigma=0.1, size=32)
            key = MatrixKey(layer, projection)
            anchors += [on_sequences(key, kl_N, low_rank=False), on_sequences(key, ratio * kl_N, low_rank=True)]
    found = class_sensitivities(anchors)
    assert set(found) == {"all", "rank0", "low_rank"}
    key = MatrixKey(2, "q")
    assert found["low_rank"][key].value / found["rank0"][key].value == pytest.approx(2.0, rel=0.01)
    assert found["all"][key].value == pytest.approx(
        np.sqrt(found["low_rank"][key].value * found["rank0"][key].value), rel=0.01
    )
    # one class alone says nothing about the other
    alone = class_sensitivities([anchor for anchor in anchors if not anchor.low_rank])
    assert set(alone) == {"all"}
