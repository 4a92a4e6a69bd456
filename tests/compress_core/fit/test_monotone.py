"""The non-parametric fallback."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from compress_core.errors import FitError
from compress_core.fit import ErrorObservation, fit_monotone
from compress_core.matrix import MatrixKey

Plant = Callable[..., tuple[list[ErrorObservation], dict[MatrixKey, float]]]
Q0 = MatrixKey(0, "q")


def test_exact_at_measured_cells(plant: Plant) -> None:
    observations, _ = plant(noise=0.5)
    fit = fit_monotone(observations)
    for o in observations:
        assert fit.predict(o.matrix, o.b_q, o.rank) == pytest.approx(o.error, rel=1e-12)
        assert fit.is_measured(o.matrix, o.b_q, o.rank)
    assert np.abs(fit.residuals).max() < 1e-12
    assert fit.physical  # no parameters, nothing to contradict
    assert not fit.parameters


def test_holes_are_filled_within_their_neighbours(plant: Plant) -> None:
    observations, _ = plant(noise=0.0, layers=3)
    rng = np.random.default_rng(1)
    kept = [o for o in observations if rng.random() < 0.6 or (o.b_q, o.rank) in ((2, 0), (4, 32))]
    fit = fit_monotone(kept, cross_validate=False)
    matrices = {o.matrix for o in observations}
    for matrix in matrices:
        grid = np.array([[fit.predict(matrix, b, r) for r in (0, 3, 8, 20, 32)] for b in (2, 3, 4)])
        assert (np.diff(grid, axis=0) <= 1e-12).all()
        assert (np.diff(grid, axis=1) <= 1e-12).all()
    holes = [o for o in observations if o not in kept]
    error = [abs(np.log(fit.predict(o.matrix, o.b_q, o.rank) / o.error)) for o in holes]
    assert holes
    assert max(error) < 0.05  # one law for all: the pooled profile knows the holes
    assert not fit.is_measured(holes[0].matrix, holes[0].b_q, holes[0].rank)


def test_a_types_own_profile_counts_as_far_as_its_layers_agree() -> None:
    rng = np.random.default_rng(2)
    cells = list(itertools.product((2, 3, 4), (0, 8)))

    def sweep(differ: float, noise: float) -> list[ErrorObservation]:
        bend = {p: differ * rng.normal(size=len(cells)) for p in ("q", "k", "v", "o")}
        return [
            ErrorObservation(
                MatrixKey(i, p), b, r, float(np.exp(i - 1.4 * b - 0.05 * r + bend[p][j] + noise * rng.normal()))
            )
            for i in range(5)
            for p in bend
            for j, (b, r) in enumerate(cells)
        ]

    def left_out(observations: list[ErrorObservation]) -> float:
        validation = fit_monotone(observations).layer_validation
        assert validation is not None
        return validation.rmse_log

    # the types differ and their layers agree: a layer left out is known from its type, but for noise and its anchor's
    assert left_out(sweep(0.3, 0.01)) == pytest.approx(0.015, abs=0.006)
    # noise alone: a profile of its own for each type would only add to it
    assert left_out(sweep(0.0, 0.3)) == pytest.approx(0.3 * np.sqrt(2), rel=0.25)


def test_bounds_hold_where_the_pooled_profile_is_wrong() -> None:
    cells = list(itertools.product((2, 3, 4), (0, 8)))
    ordinary = [ErrorObservation(MatrixKey(i, "q"), b, r, 4.0**-b) for i in (1, 2, 3) for b, r in cells]
    odd = [ErrorObservation(Q0, 2, 0, 1.0), ErrorObservation(Q0, 4, 0, 0.9), ErrorObservation(Q0, 4, 8, 0.8)]
    fit = fit_monotone(ordinary + odd, cross_validate=False)
    assert 0.9 <= fit.predict(Q0, 3, 0) <= 1.0
    assert 0.8 <= fit.predict(Q0, 2, 8) <= 1.0


def test_between_grid_points_in_log() -> None:
    fit = fit_monotone([ErrorObservation(Q0, b, 0, 4.0**-b) for b in (2, 4)], cross_validate=False)
    assert fit.predict(Q0, 3, 0) == pytest.approx(4.0**-3)


def test_it_does_not_extrapolate(plant: Plant) -> None:
    fit = fit_monotone(plant()[0], cross_validate=False)
    with pytest.raises(FitError, match="b_q 5 lies outside the measured 2 … 4"):
        fit.predict(Q0, 5, 0)
    with pytest.raises(FitError, match="rank 64 lies outside"):
        fit.predict(Q0, 2, 64)
    with pytest.raises(FitError, match="knows no matrix"):
        fit.predict(MatrixKey(99, "q"), 2, 0)


def test_cross_validation_sees_the_configs_left_out(plant: Plant) -> None:
    fit = fit_monotone(plant(noise=0.05)[0])
    assert fit.cross_validation is not None
    assert fit.cross_validation.n_folds == 9
    assert fit.cross_validation.n_predicted == 378
    assert fit.cross_validation.rmse_log > 0.05


def test_a_single_config_cannot_be_cross_validated() -> None:
    fit = fit_monotone([ErrorObservation(Q0, 2, 0, 0.5)])
    assert fit.cross_validation is None
    assert fit.predict(Q0, 2, 0) == pytest.approx(0.5)


def test_repeated_measurements_are_averaged_in_log() -> None:
    fit = fit_monotone([ErrorObservation(Q0, 2, 0, 1.0), ErrorObservation(Q0, 2, 0, 4.0)])
    assert fit.predict(Q0, 2, 0) == pytest.approx(2.0)


def test_zero_matrices_stay_zero() -> None:
    fit = fit_monotone([ErrorObservation(Q0, 2, 0, 0.0), ErrorObservation(MatrixKey(1, "q"), 2, 0, 1.0)])
    assert fit.predict(Q0, 2, 0) == 0
