"""Residual spectra and the form that lives on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress_core.errors import FitError, NonFiniteValues
from compress_core.fit import fit_multiplicative, read_spectrum
from compress_core.fit.spectrum import captured_at, nearest_spectrum
from compress_core.matrix import MatrixKey

Plant = Callable[..., Any]
Q0 = MatrixKey(0, "q")
SPECTRUM = {"ranks": [1, 3, 7], "captured": [0.25, 0.5, 0.75]}


def test_shares_between_ranks() -> None:
    spectrum = read_spectrum(SPECTRUM)
    assert spectrum.to_dict() == SPECTRUM
    # ln 1, 2, 4, 8 are equally far apart
    assert [captured_at(spectrum, r) for r in (0, 1, 3, 7)] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert captured_at(spectrum, 2) == pytest.approx(0.25 + 0.25 * np.log(3 / 2) / np.log(2))
    with pytest.raises(FitError, match="rank 8 lies beyond the residual spectrum, which is recorded up to 7"):
        captured_at(spectrum, 8)


def test_the_nearest_bits_count() -> None:
    two, five = read_spectrum(SPECTRUM), read_spectrum({"ranks": [1], "captured": [0.5]})
    spectra = {(Q0, 2): two, (Q0, 5): five}
    assert [nearest_spectrum(spectra, Q0, b) for b in (2, 3, 4, 8)] == [two, two, five, five]
    with pytest.raises(FitError, match=r"no residual spectrum is recorded for matrix 1\.q"):
        nearest_spectrum(spectra, MatrixKey(1, "q"), 2)


@pytest.mark.parametrize(
    "values",
    [
        {"ranks": [], "captured": []},
        {"ranks": [1, 2], "captured": [0.5]},
        {"ranks": [0, 2], "captured": [0.0, 0.5]},
        {"ranks": [2, 1], "captured": [0.2, 0.5]},
        {"ranks": [1, 2], "captured": [0.5, 0.4]},
        {"ranks": [1], "captured": [1.5]},
        {"ranks": [1], "captured": [float("nan")]},
    ],
)
def test_what_is_no_spectrum_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteValues, match="residual spectrum"):
        read_spectrum(values)


def test_one_spectrum_predicts_ranks_never_measured(plant_any: Plant) -> None:
    planted = plant_any("spectral", noise=0.02)
    fit = fit_multiplicative(planted.observations, spectra=planted.spectra)
    assert {p.name for p in fit.parameters} == {"beta", "eta"}
    assert "residual spectrum" in fit.details["rho"]
    assert fit.physical
    wide = plant_any("spectral", ranks=(0, 16, 64))
    errors = [
        np.log(fit.predict(o.matrix, o.b_q, o.rank) / o.error) for o in wide.observations if o.matrix.layer_idx == 0
    ]
    assert np.sqrt(np.mean(np.square(errors))) < 0.06
    with pytest.raises(FitError, match="beyond the residual spectrum"):
        fit.predict(Q0, 2, 65)


def test_without_all_spectra_one_curve_stands_for_them(plant_any: Plant) -> None:
    planted = plant_any("multiplicative", noise=0.02)
    some = {key: value for key, value in planted.spectra.items() if key[0] != Q0}
    fit = fit_multiplicative(planted.observations, spectra=some, cross_validate=False)
    assert {p.name for p in fit.parameters} == {"beta", "gamma", "delta"}
    assert "no residual spectrum is recorded" in fit.details["rho"]
    with pytest.raises(FitError, match="at least 3 ranks, but only 0, 8 is measured"):
        fit_multiplicative(plant_any("multiplicative", ranks=(0, 8)).observations)


def test_full_rank_leaves_something(plant_any: Plant) -> None:
    planted = plant_any("spectral")
    whole = {key: read_spectrum({"ranks": [8, 32], "captured": [0.6, 1.0]}) for key in planted.spectra}
    fit = fit_multiplicative(planted.observations, spectra=whole, cross_validate=False)
    assert 0 < fit.predict(Q0, 2, 32) < fit.predict(Q0, 2, 8)
