"""Cross-validation: what is left out, what is predicted from what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from compress_core.fit import ErrorObservation, fit_additive, fit_log_linear, fit_monotone
from compress_core.fit.leave_out import MOST_LAYER_FOLDS, anchor_cells, leave_one_config_out, leave_one_layer_out
from compress_core.matrix import MatrixKey

Plant = Callable[..., Any]
Q0 = MatrixKey(0, "q")


def test_a_left_out_layer_keeps_only_its_anchor(plant_any: Plant) -> None:
    observations = plant_any(layers=4, noise=0.05).observations
    seen: list[Sequence[ErrorObservation]] = []

    def refit(rest: Sequence[ErrorObservation]) -> Any:
        seen.append(rest)
        return fit_log_linear(rest, cross_validate=False)

    result = leave_one_layer_out(observations, refit)
    assert result is not None
    assert (result.scheme, result.n_folds, result.n_predicted, result.n_unpredictable) == ("layer", 4, 4 * 7 * 8, 0)
    for layer, rest in enumerate(seen):
        left = [o for o in rest if o.matrix.layer_idx == layer]
        assert len(left) == 7
        assert {(o.b_q, o.rank) for o in left} == {(2, 0)}  # the coarsest config
    anchors = [i for i, o in enumerate(observations) if (o.b_q, o.rank) == (2, 0)]
    assert np.isnan(result.residuals[anchors]).all()
    assert (result.fold[anchors] == -1).all()


def test_the_scale_of_a_left_out_layer_is_that_of_its_anchor() -> None:
    """Layers tilt against each other: a left-out one is predicted from its anchor on, by the others' slope."""
    cells = [(b, r) for b in (2, 3, 4) for r in (0, 8)]
    observations = [
        ErrorObservation(
            MatrixKey(layer, "q"), b, r, (1 + 9 * layer) * 2.0 ** (-(2 - 0.1 * layer) * b) * (r + 1) ** -0.3
        )
        for layer in range(4)
        for b, r in cells
    ]
    result = leave_one_layer_out(observations, lambda rest: fit_log_linear(rest, cross_validate=False))
    assert result is not None
    of_last = [i for i, o in enumerate(observations) if o.matrix.layer_idx == 3]
    # the others have β = 2, 1.9, 1.8 and the last 1.7: 0.2·ln 2 a bit above the anchor's two
    expected = [0.2 * np.log(2) * (observations[i].b_q - 2) for i in of_last if cells[i % 6] != (2, 0)]
    found = [result.residuals[i] for i in of_last if cells[i % 6] != (2, 0)]
    assert found == pytest.approx(expected, abs=0.02)


def test_a_matrix_without_the_coarsest_config_has_its_own_anchor() -> None:
    given = [ErrorObservation(Q0, 3, 8, 0.1), ErrorObservation(Q0, 3, 4, 0.2), ErrorObservation(Q0, 2, 8, 0.0)]
    assert anchor_cells(given) == {Q0: (3, 4)}


def test_of_a_deep_model_some_layers_are_left_out(plant_any: Plant) -> None:
    observations = plant_any(layers=MOST_LAYER_FOLDS + 5, noise=0.05).observations
    result = leave_one_layer_out(observations, lambda rest: fit_monotone(rest, cross_validate=False))
    assert result is not None
    assert result.n_folds == MOST_LAYER_FOLDS
    left = {o.matrix.layer_idx for o, fold in zip(observations, result.fold, strict=True) if fold >= 0}
    assert {0, MOST_LAYER_FOLDS + 4} < left


def test_one_layer_cannot_be_left_out() -> None:
    fit = fit_monotone([ErrorObservation(Q0, b, r, 4.0**-b) for b in (2, 3) for r in (0, 8)])
    assert fit.layer_validation is None
    assert fit.cross_validation is not None


def test_every_config_is_left_out_once_and_told_by_group(plant_any: Plant) -> None:
    observations = plant_any(noise=0.1).observations
    result = fit_additive(observations).cross_validation
    assert result is not None
    assert result.n_predicted == len(observations) == np.isfinite(result.residuals).sum()
    for number in range(9):
        held = {(o.b_q, o.rank) for o, fold in zip(observations, result.fold, strict=True) if fold == number}
        assert len(held) == 1
    quality = result.quality
    assert quality.attention is not None
    assert quality.mlp is not None
    assert quality.attention.n + quality.mlp.n == quality.overall.n == len(observations)
    assert quality.overall.rmse_log == result.rmse_log == pytest.approx(float(np.sqrt((result.residuals**2).mean())))


def test_what_cannot_be_predicted_is_counted(plant_any: Plant) -> None:
    # without its only rank above 0, rank 8 lies outside
    observations = plant_any(bits=(2, 3), ranks=(0, 8)).observations
    few = [o for o in observations if (o.b_q, o.rank) != (3, 8)]
    result = leave_one_config_out(few, lambda rest: fit_monotone(rest, cross_validate=False))
    assert result is not None
    assert result.n_unpredictable == 2 * 42
    assert result.n_predicted == 42


def test_a_matrix_of_which_only_zeros_are_left_is_not_predicted(plant_any: Plant) -> None:
    observations = plant_any(layers=2, noise=0.05).observations
    zero = [ErrorObservation(MatrixKey(5, "q"), b, 0, 0.0) for b in (3, 4)]
    result = fit_log_linear([*observations, *zero, ErrorObservation(MatrixKey(5, "q"), 2, 0, 0.3)]).cross_validation
    assert result is not None
    assert (result.n_predicted, result.n_unpredictable) == (len(observations), 1)
    assert np.isnan(result.residuals[-3:]).all()
