"""Every form recovers its own law: exactly without noise, within its intervals with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress_core.fit import ParametricFit, fit_additive, fit_log_linear, fit_multiplicative

Plant = Callable[..., Any]
FORMS = ("additive", "log_linear", "spectral", "multiplicative")


def fit_of(law: str, planted: Any, **kwargs: Any) -> ParametricFit:
    match law:
        case "additive":
            return fit_additive(planted.observations, cross_validate=False, **kwargs)
        case "log_linear":
            return fit_log_linear(planted.observations, cross_validate=False, **kwargs)
        case "spectral":
            return fit_multiplicative(planted.observations, spectra=planted.spectra, cross_validate=False, **kwargs)
    return fit_multiplicative(planted.observations, cross_validate=False, **kwargs)


@pytest.mark.parametrize("law", FORMS)
def test_a_law_without_noise_is_recovered_with_its_types(law: str, plant_any: Plant) -> None:
    planted = plant_any(law, between=0.05)
    fit = fit_of(law, planted)
    for projection, parameters in planted.types.items():
        for name, value in parameters.items():
            if law == "additive" and name in ("alpha", "gamma"):
                continue  # planted unnormalised
            assert fit.parameter(name, projection).value == pytest.approx(value, rel=1e-5), (projection, name)
    assert fit.details["converged"]
    assert np.abs(fit.residuals).max() < 1e-6
    for o in planted.observations[::29]:
        assert fit.predict(o.matrix, o.b_q, o.rank) == pytest.approx(o.error, rel=1e-6)


@pytest.mark.parametrize(("law", "between"), [*((law, 0.1) for law in FORMS), ("multiplicative", 0.0)])
def test_intervals_cover_what_was_planted(law: str, between: float, plant_any: Plant, laws: Any) -> None:
    """Near 95 % of the intervals hold their value: the common ones' in 14 repetitions, and the types' own."""
    shared: list[bool] = []
    own: list[bool] = []
    for seed in range(14):
        planted = plant_any(law, noise=0.1, between=between, seed=seed, outliers=5 * (seed % 2))
        fit = fit_of(law, planted)
        assert fit.details["converged"]
        for p in fit.parameters:
            if law == "additive" and p.name in ("alpha", "gamma"):
                continue
            value = laws[law][p.name] if p.projection is None else planted.types[p.projection][p.name]
            (shared if p.projection is None else own).append(p.low <= value <= p.high)
    assert 0.85 <= np.mean(shared) <= 1.0
    assert 0.88 <= np.mean(own) <= 0.995


@pytest.mark.parametrize("law", FORMS)
def test_pooling_helps_a_noisy_type(law: str, plant_any: Plant) -> None:
    """Of a type whose errors are noisy, what the others know is worth more than its own alone."""
    squares: dict[str, list[float]] = {"partial": [], "none": []}
    for seed in range(6):
        planted = plant_any(law, noise=0.1, between=0.03, noisy="k", seed=seed)
        for pooling, found in squares.items():
            fit = fit_of(law, planted, pooling=pooling)
            names = [name for name in planted.types["k"] if law != "additive" or name in ("beta", "delta")]
            found += [(fit.parameter(name, "k").value - planted.types["k"][name]) ** 2 for name in names]
    assert np.mean(squares["partial"]) < 0.8 * np.mean(squares["none"])


def test_without_differences_types_agree_and_with_them_they_do_not(plant_any: Plant) -> None:
    def betas(between: float, pooling: str = "partial") -> np.ndarray:
        fit = fit_of("log_linear", plant_any("log_linear", noise=0.05, between=between, seed=3), pooling=pooling)
        return np.array([p.value for p in fit.parameters if p.name == "beta" and p.projection])

    assert betas(0.0).std() < 0.7 * betas(0.0, "none").std()
    planted = plant_any("log_linear", noise=0.05, between=0.3, seed=3)
    truth = [planted.types[p]["beta"] for p in sorted(planted.types)]
    assert np.abs(betas(0.3) - truth).max() < 0.1
    assert betas(0.3, "complete").std() < 1e-12


def test_noise_is_told_by_type_and_weighed(plant_any: Plant) -> None:
    planted = plant_any("log_linear", noise=0.05, noisy="k", layers=10)
    noise = fit_of("log_linear", planted).noise
    assert noise.typical == pytest.approx(0.05, rel=0.25)
    for b in (2, 3, 4):
        assert noise.ratio["k", b] == pytest.approx(9, rel=0.6)
        assert noise.ratio["q", b] == pytest.approx(1, rel=0.6)
    told = noise.to_dict()["sd"]
    assert told["k@2"] > 2 * told["q@2"]


def test_repetitions_bound_the_noise_from_below(plant_any: Plant) -> None:
    twice = [plant_any("log_linear", noise=0.1).observations, plant_any("log_linear", noise=0.1, seed=1).observations]
    level = {o.matrix: o.error for o in twice[0] if (o.b_q, o.rank) == (2, 0)}
    # the same matrices, whose scales differ between the seeds by more than noise: the repetitions say so
    assert set(level) == {o.matrix for o in twice[1]}
    noise = fit_log_linear([*twice[0], *twice[1]], cross_validate=False).noise
    assert noise.replicate_freedom == 378
    assert noise.replicate_sd is not None
    assert noise.replicate_sd > 0.5
    alone = fit_log_linear(twice[0], cross_validate=False).noise
    assert (alone.replicate_sd, alone.replicate_freedom) == (None, 0)


def test_a_type_with_too_little_of_its_own_takes_what_is_common(plant_any: Plant) -> None:
    planted = plant_any("log_linear", noise=0.02)
    few = [o for o in planted.observations if o.matrix.projection != "k" or (o.b_q, o.rank) in ((2, 0), (2, 8))]
    fit = fit_log_linear(few, cross_validate=False)
    assert fit.parameter("beta", "k").value == pytest.approx(1.8, abs=0.05)
    assert fit.parameter("beta", "k").standard_error > 1.5 * fit.parameter("beta", "q").standard_error
    o = next(o for o in planted.observations if o.matrix.projection == "k" and (o.b_q, o.rank) == (4, 32))
    assert fit.predict(o.matrix, 4, 32) == pytest.approx(o.error, rel=0.2)


def test_a_wrong_sign_of_one_type_fails_the_check(plant_any: Plant) -> None:
    planted = plant_any("log_linear", noise=0.01)
    odd = [
        type(o)(o.matrix, o.b_q, o.rank, o.error * (o.rank + 1) ** 0.6) if o.matrix.projection == "k" else o
        for o in planted.observations
    ]
    fit = fit_log_linear(odd, cross_validate=False)
    check = next(c for c in fit.checks if c.name == "delta > 0")
    assert fit.parameter("delta").value > 0
    assert not check.passed
    assert check.detail.endswith("not positive for k")


@pytest.mark.parametrize("law", FORMS)
def test_errors_that_do_not_know_their_bits_are_fitted_and_fail_the_check(law: str, plant_any: Plant) -> None:
    """No noise, two ranks, and nothing for β to explain: the parameters are not told apart, and no number breaks."""
    planted = plant_any(law, layers=3, bits=(2, 3, 8), ranks=(0, 16, 64))
    flat = [type(o)(o.matrix, o.b_q, o.rank, 0.5 / (1 + o.rank)) for o in planted.observations]
    fit = fit_of(law, type(planted)(flat, planted.scales, planted.types, planted.spectra))
    assert np.isfinite([p.value for p in fit.parameters]).all()
    assert fit.parameter("beta").value < 0.05
    assert not all(check.sure for check in fit.checks)
    for o in flat[::11]:
        assert np.isfinite(fit.predict(o.matrix, o.b_q, o.rank))
