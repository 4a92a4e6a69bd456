"""The additive fit of the plan and its log-linear rival."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from compress_core.errors import FitError, NonFiniteValues
from compress_core.fit import ErrorObservation, fit_additive, fit_log_linear
from compress_core.matrix import MatrixKey

Plant = Callable[..., tuple[list[ErrorObservation], dict[MatrixKey, float]]]
Q0 = MatrixKey(0, "q")


def test_a_planted_law_is_recovered_exactly(plant: Plant, law: dict[str, float]) -> None:
    observations, scales = plant()
    fit = fit_additive(observations)
    for name, value in law.items():
        assert fit.parameter(name).value == pytest.approx(value, rel=1e-6)
    assert fit.scales == pytest.approx(scales, rel=1e-6)
    assert fit.quality.overall.r2_log_within == pytest.approx(1)
    assert fit.physical
    assert np.abs(fit.residuals).max() < 1e-6
    o = observations[17]
    assert fit.predict(o.matrix, o.b_q, o.rank) == pytest.approx(o.error, rel=1e-6)
    # a config never measured
    g = law["alpha"] * 2 ** (-law["beta"] * 5) + law["gamma"] * 17 ** -law["delta"]
    assert fit.predict(Q0, 5, 16) == pytest.approx(scales[Q0] * g, rel=1e-6)


def test_intervals_cover_the_planted_law(plant: Plant, law: dict[str, float]) -> None:
    """95 % intervals cover each parameter in nearly all of 30 noisy repetitions (binomial: ≥ 25 with P > 0.998)."""
    covered = dict.fromkeys(law, 0)
    for seed in range(30):
        fit = fit_additive(plant(noise=0.1, seed=seed)[0], cross_validate=False)
        for name, value in law.items():
            p = fit.parameter(name)
            covered[name] += p.low <= value <= p.high
    assert min(covered.values()) >= 25, covered


def test_outliers_barely_move_it(plant: Plant, law: dict[str, float]) -> None:
    fit = fit_additive(plant(noise=0.05, outliers=12)[0], cross_validate=False)
    assert fit.parameter("beta").value == pytest.approx(law["beta"], abs=0.1)
    assert fit.parameter("delta").value == pytest.approx(law["delta"], abs=0.1)


def test_quality_is_told_by_group(plant: Plant) -> None:
    fit = fit_additive(plant(noise=0.2)[0])
    quality = fit.quality
    assert set(quality.by_projection) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert quality.attention is not None
    assert quality.mlp is not None
    assert quality.early is not None
    assert quality.late is not None
    assert quality.attention.n + quality.mlp.n == quality.early.n + quality.late.n == quality.overall.n == 378
    assert quality.overall.r2_log is not None
    assert quality.overall.r2_log_within is not None
    # the free scale flatters the pooled figure
    assert quality.overall.r2_log > quality.overall.r2_log_within > 0.9
    assert quality.overall.rmse_log == pytest.approx(0.2, rel=0.2)


def test_cross_validation_is_honest(plant: Plant) -> None:
    fit = fit_additive(plant(noise=0.2)[0])
    result = fit.cross_validation
    assert result is not None
    assert result.n_folds == 9
    assert result.n_predicted == 378
    assert result.n_unpredictable == 0
    assert result.rmse_log > fit.quality.overall.rmse_log
    assert result.r2_log_within is not None
    assert fit.quality.overall.r2_log_within is not None
    assert result.r2_log_within < fit.quality.overall.r2_log_within


def test_the_rival_has_the_same_face_and_loses_on_the_additive_law(plant: Plant) -> None:
    observations, _ = plant(noise=0.02, bits=(2, 3, 4, 6))
    additive, rival = fit_additive(observations), fit_log_linear(observations)
    assert rival.physical
    assert additive.cross_validation is not None
    assert rival.cross_validation is not None
    assert rival.cross_validation.rmse_log > 2 * additive.cross_validation.rmse_log
    assert {p.name for p in rival.parameters} == {"beta", "delta"}


def test_wrong_signs_are_caught() -> None:
    observations = [
        ErrorObservation(MatrixKey(i, "q"), b, r, 2.0 ** (0.5 * b) * (r + 1) ** -0.3)
        for i in range(4)
        for b in (2, 3, 4)
        for r in (0, 4, 16)
    ]
    fit = fit_log_linear(observations)
    assert not fit.physical
    failed = next(c for c in fit.checks if not c.passed)
    assert failed.name == "beta > 0"
    assert not failed.sure


def test_weights_count(plant: Plant) -> None:
    observations, scales = plant(layers=1)
    wrong = [ErrorObservation(o.matrix, o.b_q, o.rank, o.error * 3, 1e-9) for o in observations[::5]]
    fit = fit_additive([*observations, *wrong], cross_validate=False)
    assert fit.scales == pytest.approx(scales, rel=1e-3)


def test_zero_errors_are_set_aside(plant: Plant) -> None:
    observations, _ = plant()
    zero = [ErrorObservation(MatrixKey(9, "q"), b, r, 0.0) for b in (2, 3) for r in (0, 8)]
    fit = fit_additive([*zero, *observations])
    assert fit.n_zero == 4
    assert np.isnan(fit.residuals[:4]).all()
    assert fit.predict(MatrixKey(9, "q"), 2, 0) == 0
    assert fit.scales[MatrixKey(9, "q")] == 0


def test_summary_is_json(plant: Plant) -> None:
    text = json.dumps(fit_additive(plant(noise=0.1)[0]).to_dict(), allow_nan=False)
    assert json.loads(text)["cross_validation"]["n_folds"] == 9


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": (2,), "ranks": (0, 4, 8, 16)}, "at least 2 values of b_q, but only 2 is measured"),
        ({"ranks": (0,)}, "at least 2 ranks, but only 0 is measured"),
        ({"layers": 0}, "no measurement"),
    ],
)
def test_what_is_missing_is_named(plant: Plant, kwargs: dict, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_additive(plant(**kwargs)[0])


def test_too_few_measurements_and_bad_numbers() -> None:
    cells = [(2, 0), (2, 8), (3, 0), (3, 8)]
    with pytest.raises(FitError, match=r"4 unknowns.*only 4 measurements"):
        fit_additive([ErrorObservation(Q0, b, r, 0.1 / b / (r + 1)) for b, r in cells])
    with pytest.raises(FitError, match="at least 4 different configs"):
        fit_additive([ErrorObservation(MatrixKey(i, "q"), b, r, 0.1) for i in range(9) for b, r in cells[:3]])
    with pytest.raises(NonFiniteValues, match=r"0\.q at b_q 2, rank 0 is nan"):
        fit_additive([ErrorObservation(Q0, 2, 0, float("nan"))])
    with pytest.raises(NonFiniteValues, match="weight"):
        fit_additive([ErrorObservation(Q0, 2, 0, 1.0, 0.0)])


def test_an_unknown_matrix_is_refused(plant: Plant) -> None:
    fit = fit_additive(plant()[0], cross_validate=False)
    with pytest.raises(FitError, match=r"knows no matrix 99\.q"):
        fit.predict(MatrixKey(99, "q"), 2, 0)
