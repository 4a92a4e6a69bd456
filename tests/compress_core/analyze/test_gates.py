"""The plan's gates."""

from __future__ import annotations

import json

import pytest

from compress_core.analyze import Estimate, GateResult, GateThresholds, Verdict, gates
from compress_core.errors import ConfigError

T = GateThresholds()
GO, NO_GO, OPEN, NONE = Verdict.GO, Verdict.NO_GO, Verdict.NOT_DECIDABLE, Verdict.NOT_MEASURED


def test_the_words_are_exact() -> None:
    assert [str(v) for v in Verdict] == ["GO", "NO-GO", "NOT DECIDABLE", "NOT MEASURED"]


def test_the_defaults_are_the_plans() -> None:
    assert (T.sensitivity_ratio, T.manual_gain_percent, T.error_ratio) == (3, 2, 10)
    assert (T.fit_r2, T.fallback_r2, T.scaled_fit_r2) == (0.7, 0.6, 0.6)
    assert (T.bytes_tolerance_percent, T.allocator_seconds) == (10, 60)
    assert (T.optimal_gain_percent, T.downstream_loss_percent) == (3, 2)


def test_thresholds_are_overridden_from_a_mapping() -> None:
    changed = GateThresholds.from_dict({"fit_r2": 0.5})
    assert changed.fit_r2 == 0.5
    assert changed.error_ratio == 10
    assert GateThresholds.from_dict(changed.to_dict()) == changed
    assert GateThresholds.from_dict(None) == T
    with pytest.raises(ConfigError, match=r"unknown gate threshold 'r2'.*fit_r2"):
        GateThresholds.from_dict({"r2": 0.5})
    for bad in ("high", True, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="fit_r2"):
            GateThresholds.from_dict({"fit_r2": bad})


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [(2.1, 3, 4, GO), (-1, 0.5, 1.9, NO_GO), (1, 2.5, 4, OPEN), (2.0, 3, 4, OPEN), (1, 1.5, 2.0, OPEN)],
)
def test_the_interval_decides(low: float, value: float, high: float, verdict: Verdict) -> None:
    result = gates.manual_beats_uniform(Estimate(value, low, high, 64), T)
    assert result.verdict == verdict
    assert (result.low, result.value, result.high) == (low, value, high)
    assert "n = 64" in result.detail
    assert result.fallback


@pytest.mark.parametrize(("n_high", "n_low", "side"), [(0, 6, "low"), (6, 0, "high")])
def test_a_recipe_that_split_nothing_decides_nothing(n_high: int, n_low: int, side: str) -> None:
    for gain in (Estimate(3, 2.5, 4, 64), Estimate(-3, -4, -2, 64)):
        result = gates.manual_beats_uniform(gain, T, n_high=n_high, n_low=n_low)
        assert result.verdict == OPEN
        assert f"every layer has the {side} config" in result.detail
        assert gates.manual_beats_uniform(gain, T, n_high=2, n_low=4).verdict != OPEN


def test_an_open_gate_says_how_many_samples_would_do() -> None:
    # half width 3 toward the threshold at distance 1: nine times the samples
    assert gates.manual_beats_uniform(Estimate(3.0, 0.0, 5.0, 100), T).needed_samples == 900
    assert gates.manual_beats_uniform(Estimate(1.0, 0.0, 4.0, 100), T).needed_samples == 900
    assert gates.manual_beats_uniform(Estimate(3.0, 0.0, 5.0, 100, n_needed=500), T).needed_samples == 500
    stuck = gates.manual_beats_uniform(Estimate(2.0, 0.0, 5.0, 100), T)
    assert stuck.verdict == OPEN
    assert stuck.needed_samples is None
    assert gates.manual_beats_uniform(Estimate(9.0, 8.0, 10.0, 100), T).needed_samples is None


def test_an_estimate_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="within its interval"):
        Estimate(5.0, 0.0, 1.0, 10)


def test_sensitivity_asks_the_low_end() -> None:
    assert gates.sensitivity_varies(Estimate(8, 3.5, 20, 32), T).verdict == GO
    assert gates.sensitivity_varies(Estimate(8, 2.5, 20, 32), T).verdict == OPEN
    assert gates.sensitivity_varies(Estimate(1.5, 1.2, 2.0, 32), T).verdict == NO_GO


@pytest.mark.parametrize(
    "result",
    [
        gates.sensitivity_varies(None, T),
        gates.manual_beats_uniform(None, T),
        gates.error_varies(None, T),
        gates.error_varies([], T),
        gates.profiles_differ(None, None, T),
        gates.collection_complete(expected=0, measured=0),
        gates.fit_explains(None, T),
        gates.parameters_physical(None),
        gates.parameters_physical({}),
        gates.fit_generalises({"attention": 0.9, "mlp": None}, T),
        gates.optimal_differs(n_configs=None, is_uniform=False, slack=False),
        gates.bytes_match(predicted=None, actual=None, budget=5, thresholds=T),
        gates.allocator_fast(None, T),
        gates.optimal_beats_uniform(None, T),
        gates.downstream_preserved({}, T),
        gates.scaled_fit_explains(None, T),
        gates.consistent({"a": Estimate(1, 1, 1, 1)}),
    ],
    ids=lambda r: r.name,
)
def test_without_data_nothing_is_claimed(result: GateResult) -> None:
    assert result.verdict == NONE
    assert result.value is None
    assert result.detail.startswith("Not measured")
    assert result.fallback


def test_error_varies_by_the_median_matrix() -> None:
    assert gates.error_varies([5, 12, 30], T).verdict == GO
    assert gates.error_varies([5, 9, 30], T).verdict == NO_GO
    assert gates.error_varies([10.0], T).verdict == NO_GO  # more than 10×, not 10×
    assert "2 of 3 matrices" in gates.error_varies([5, 12, 30], T).detail


def test_a_value_that_is_not_finite_decides_nothing() -> None:
    result = gates.fit_explains(float("nan"), T)
    assert result.verdict == OPEN
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["value"] is None


def test_profiles() -> None:
    assert gates.profiles_differ(1.5, 1.02, T).verdict == GO
    assert "1.02×" in gates.profiles_differ(1.5, 1.02, T).detail
    assert gates.profiles_differ(1.05, None, T).verdict == NO_GO


def test_collection() -> None:
    assert gates.collection_complete(expected=378, measured=378).verdict == GO
    survived = gates.collection_complete(expected=378, measured=378, lost=2)
    assert survived.verdict == GO
    assert "2 attempts were lost" in survived.detail
    assert gates.collection_complete(expected=378, measured=370).verdict == NO_GO
    assert "8 missing" in gates.collection_complete(expected=378, measured=370).detail
    assert gates.collection_complete(expected=378, measured=378, failed=1).verdict == NO_GO


def test_fit() -> None:
    assert gates.fit_explains(0.75, T).verdict == GO
    assert gates.fit_explains(0.65, T).verdict == NO_GO
    assert gates.fit_explains(0.65, T, parametric=False).verdict == GO
    assert "interpolation" in gates.fit_explains(0.65, T).fallback
    assert gates.fit_generalises({"attention": 0.9, "mlp": 0.8}, T).verdict == GO
    worst = gates.fit_generalises({"attention": 0.9, "mlp": 0.6}, T)
    assert worst.verdict == NO_GO
    assert worst.value == 0.6
    assert gates.fit_generalises({"attention": 0.9, "mlp": 0.65}, T, parametric=False).verdict == GO
    told = gates.fit_generalises({"attention": 0.9, "mlp": 0.8}, T, layers_by_type={"attention": 0.5, "mlp": None})
    assert told.verdict == GO
    assert "Of layers it has not seen: attention 0.500." in told.detail


def test_a_parametric_model_that_falls_short_gives_way() -> None:
    result = gates.fit_explains(0.65, T, parametric=False, form="monotone", refused=("additive", 0.52))
    assert result.verdict == GO
    assert result.threshold == 0.6
    assert result.detail.startswith("NO-GO for the parametric model: its best form, additive, has R² = 0.520")
    assert "non-parametric fallback (monotone) has R² = 0.650" in result.detail
    assert gates.fit_explains(0.55, T, parametric=False, refused=("additive", None)).verdict == NO_GO
    # chosen because it predicts better, not because the others fall short
    assert "non-parametric model" in gates.fit_explains(0.99, T, parametric=False).detail


def test_scaled_fit() -> None:
    assert gates.scaled_fit_explains(0.61, T).verdict == GO
    assert gates.scaled_fit_explains(0.59, T).verdict == NO_GO


def test_parameters() -> None:
    assert gates.parameters_physical({"beta": 1.9, "delta": 0.3}).verdict == GO
    assert gates.parameters_physical({"beta": 1.9, "delta": -0.3}).verdict == NO_GO
    sure = gates.parameters_physical({"beta": 1.9, "delta": 0.3}, lows={"beta": 1.8, "delta": 0.1})
    assert sure.verdict == GO
    unsure = gates.parameters_physical({"beta": 1.9, "delta": 0.3}, lows={"beta": 1.8, "delta": -0.1})
    assert unsure.verdict == OPEN
    assert "delta" in unsure.detail
    unknown = gates.parameters_physical({"beta": 1.9, "delta": 0.3}, lows={"beta": 1.8, "delta": float("-inf")})
    assert unknown.verdict == OPEN


def test_optimal_differs() -> None:
    assert gates.optimal_differs(n_configs=4, is_uniform=False, slack=False).verdict == GO
    assert gates.optimal_differs(n_configs=1, is_uniform=True, slack=False).verdict == NO_GO
    slack = gates.optimal_differs(n_configs=1, is_uniform=True, slack=True)
    assert slack.verdict == OPEN
    assert "Lower the budget" in slack.detail


def test_bytes() -> None:
    assert gates.bytes_match(predicted=950, actual=950, budget=1000, thresholds=T).verdict == GO
    assert gates.bytes_match(predicted=950, actual=None, budget=1000, thresholds=T).verdict == GO
    assert gates.bytes_match(predicted=950, actual=951, budget=1000, thresholds=T).verdict == NO_GO
    assert gates.bytes_match(predicted=880, actual=880, budget=1000, thresholds=T).verdict == NO_GO
    assert gates.bytes_match(predicted=1001, actual=1001, budget=1000, thresholds=T).verdict == NO_GO
    assert gates.bytes_match(predicted=500, actual=500, budget=1000, thresholds=T, slack=True).verdict == OPEN


def test_time() -> None:
    assert gates.allocator_fast(0.05, T).verdict == GO
    assert gates.allocator_fast(61, T).verdict == NO_GO


def test_optimal_against_uniform() -> None:
    gain = Estimate(2.0, 1.0, 2.9, 100)
    assert gates.optimal_beats_uniform(gain, T).verdict == NO_GO  # phase 4 asks for 3 %
    assert gates.optimal_beats_uniform(gain, T, phase=5).verdict == GO
    slack = gates.optimal_beats_uniform(gain, T, phase=5, slack=True)
    assert slack.verdict == OPEN
    assert "slack" in slack.detail
    with pytest.raises(ValueError, match="phases 4 and 5"):
        gates.optimal_beats_uniform(gain, T, phase=3)


def test_downstream_shows_the_worst_task() -> None:
    fine, drop, vague = Estimate(-0.5, -1.5, 0.5, 500), Estimate(-5, -7, -3, 500), Estimate(-1, -4, 2, 50)
    assert gates.downstream_preserved({"mmlu": fine}, T).verdict == GO
    assert gates.downstream_preserved({"mmlu": fine, "gsm8k": vague}, T).verdict == OPEN
    worst = gates.downstream_preserved({"mmlu": fine, "gsm8k": vague, "humaneval": drop}, T)
    assert worst.verdict == NO_GO
    assert "humaneval" in worst.detail


def test_consistency() -> None:
    up, down, vague = Estimate(3, 1, 5, 100), Estimate(-3, -5, -1, 100), Estimate(1, -1, 3, 100)
    assert gates.consistent({"6 GB": up, "8 GB": up}).verdict == GO
    assert gates.consistent({"6 GB": up, "8 GB": down}).verdict == NO_GO
    undecided = gates.consistent({"6 GB": up, "8 GB": vague})
    assert undecided.verdict == OPEN
    assert undecided.needed_samples == 400
    assert "undecided on 8 GB" in undecided.detail


def test_a_prediction_must_rank_at_the_low_end() -> None:
    slope = Estimate(1.1, 0.9, 1.3, 24)
    good = gates.prediction_ranks(Estimate(0.96, 0.92, 0.99, 24), T, slope=slope, where="budget 2")
    assert good.verdict == GO
    assert "at budget 2" in good.detail
    assert "to the power 1.1" in good.detail
    assert gates.prediction_ranks(Estimate(0.95, 0.85, 0.99, 24), T).verdict == OPEN
    bad = gates.prediction_ranks(Estimate(0.4, 0.1, 0.7, 24), T)
    assert bad.verdict == NO_GO
    assert "choose again" in bad.fallback
    assert gates.prediction_ranks(None, T).verdict == NONE
