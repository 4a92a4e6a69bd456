"""The choice between forms."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress_core.errors import FitError
from compress_core.fit import FORMS, ErrorObservation, fit_form, select_form
from compress_core.matrix import MatrixKey

Plant = Callable[..., Any]


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("additive", "additive"),
        ("log_linear", "log_linear"),
        ("spectral", "multiplicative"),
        ("multiplicative", "multiplicative"),
    ],
)
def test_the_planted_form_is_chosen(law: str, expected: str, plant_any: Plant) -> None:
    planted = plant_any(law, noise=0.03, between=0.03, ranks=(0, 4, 16, 64), layers=3, outliers=3)
    found = select_form(planted.observations, spectra=planted.spectra if law == "spectral" else None)
    assert (found.chosen, found.parametric, found.fallback) == (expected, expected, False)
    assert set(found.fits) == set(FORMS)
    assert [judged.form for judged in found.judged if judged.chosen] == [expected]
    assert all(judged.reason for judged in found.judged)
    assert found.best.form == expected
    json.dumps([judged.to_dict() for judged in found.judged], allow_nan=False)


def test_of_forms_that_predict_alike_the_simpler_is_taken(plant_any: Plant) -> None:
    """With two bits a power of the rank and one of the share that is left can both be had: the simpler is enough."""
    found = select_form(plant_any("log_linear", noise=0.2, layers=3).observations)
    assert found.chosen == "log_linear"
    judged = {entry.form: entry for entry in found.judged}
    best = min((entry for entry in judged.values() if entry.cv_rmse is not None), key=lambda entry: entry.cv_rmse)
    if best.form != "log_linear":
        assert "within one standard error" in judged["log_linear"].reason
        assert "log_linear is simpler" in best.reason
    assert judged["log_linear"].n_parameters == 2
    assert judged["monotone"].n_parameters is None


def zigzag() -> list[ErrorObservation]:
    """Errors that no smooth law of bits and rank describes, the same in every layer."""
    level = np.random.default_rng(5).normal(size=9)
    cells = list(itertools.product((2, 3, 4), (0, 4, 16)))
    return [
        ErrorObservation(MatrixKey(layer, p), b, r, float(np.exp(layer + level[k])))
        for layer in range(3)
        for p in ("q", "down")
        for k, (b, r) in enumerate(cells)
    ]


def test_where_no_form_fits_interpolation_takes_their_place() -> None:
    found = select_form(zigzag())
    assert (found.chosen, found.fallback) == ("monotone", True)
    assert found.parametric in FORMS[:3]
    reasons = {judged.form: judged.reason for judged in found.judged}
    assert reasons["monotone"].startswith(f"NO-GO for the parametric model: {found.parametric}")
    assert "not above 0.7" in reasons["monotone"]
    assert "no R² above 0.7" in reasons["additive"]


def test_the_threshold_is_the_studys(plant_any: Plant) -> None:
    observations = plant_any("log_linear", noise=0.1, layers=2).observations
    assert not select_form(observations).fallback
    assert select_form(observations, needed_r2=0.99999).fallback


def test_forms_that_cannot_be_fitted_are_named(plant_any: Plant) -> None:
    found = select_form(plant_any("log_linear", bits=(2,), layers=2).observations)
    assert (found.chosen, found.parametric, found.fallback) == ("monotone", None, False)
    reasons = {judged.form: judged for judged in found.judged}
    assert not reasons["additive"].fitted
    assert reasons["additive"].reason == (
        "not fitted: the additive fit needs at least 2 values of b_q, but only 2 is measured"
    )
    two_ranks = select_form(plant_any("log_linear", ranks=(0, 8), layers=2).observations)
    assert "multiplicative" not in two_ranks.fits
    with pytest.raises(FitError, match="no measurement with a positive error"):
        select_form([])
    with pytest.raises(ValueError, match="no form is called"):
        fit_form("magic", [])


def test_one_config_leaves_nothing_to_compare_by() -> None:
    found = select_form([ErrorObservation(MatrixKey(0, "q"), 2, 0, 0.5)])
    assert found.chosen == "monotone"
    (judged,) = [entry for entry in found.judged if entry.chosen]
    assert judged.cv_rmse is None
    assert "nothing could be left out" in judged.reason
