"""Error profiles and how layers differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compress_core.errors import FitError
from compress_core.fit import ErrorObservation, error_profiles
from compress_core.matrix import MatrixKey

Plant = Callable[..., tuple[list[ErrorObservation], dict[MatrixKey, float]]]


def test_level_and_shape_are_told_apart(plant: Plant) -> None:
    found = error_profiles(plant()[0])
    assert found.log_error.shape == (42, 9)
    assert found.shape_factor == pytest.approx(1)  # one law, only the scales differ
    assert found.level_and_shape_factor > 2
    assert np.allclose(found.profiles.mean(axis=1), 0)
    assert found.layer_ratio().min() > 1.5


def test_noise_shows_in_the_shape(plant: Plant) -> None:
    assert error_profiles(plant(noise=0.2, layers=20)[0]).shape_factor == pytest.approx(np.exp(0.2), rel=0.03)


def test_config_ratio() -> None:
    found = error_profiles([ErrorObservation(MatrixKey(0, "q"), b, 0, 10.0**-b) for b in (2, 3, 5)])
    assert found.config_ratio == pytest.approx([1000])
    with pytest.raises(FitError, match="two layers"):
        _ = found.shape_factor


def test_missing_cells_are_left_out() -> None:
    observations = [
        ErrorObservation(MatrixKey(0, "q"), 2, 0, 1.0),
        ErrorObservation(MatrixKey(0, "q"), 3, 0, 0.5),
        ErrorObservation(MatrixKey(1, "q"), 2, 0, 4.0),
    ]
    found = error_profiles(observations)
    assert np.isnan(found.log_error[1, 1])
    assert found.level_and_shape_factor == pytest.approx(np.exp(np.log(4) / np.sqrt(2)))
    assert found.layer_ratio() == pytest.approx([4, 1])
