"""Company multipliers: what layers cost together over what their matrices cost alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compress_core.allocate import KLAnchor, estimate_sensitivities
from compress_core.allocate.company import LIMITS, LayerSaving, company_multipliers, in_company
from compress_core.errors import FitError
from compress_core.matrix import MatrixKey


def test_configs_are_averaged_in_log() -> None:
    alone = np.array([0.1, 0.2, 0.3, 0.4])
    found = company_multipliers([LayerSaving(0, "a", 2 * alone, alone), LayerSaving(0, "b", 4.5 * alone, alone)])
    assert found[0].value == pytest.approx(3.0)
    # a ratio of the same sequences: their noise cancels
    assert found[0].log_se == pytest.approx(0.0, abs=1e-12)
    noisy = company_multipliers([LayerSaving(0, "a", 2 * alone[::-1], alone)])[0]
    assert noisy.value == pytest.approx(2.0)
    assert noisy.log_se > 0.1


def test_accidents_are_bounded() -> None:
    one = np.ones(4)
    found = company_multipliers(
        [LayerSaving(i, "a", s * one, a * one) for i, (s, a) in enumerate([(-1, 1), (90, 1), (1, 0)])]
    )
    assert [m.value for m in found.values()] == pytest.approx([LIMITS[0], LIMITS[1], 1.0])
    # every draw is cut to the same limit, which is no certainty
    assert [m.log_se for m in found.values()] == pytest.approx([1.0, 1.0, 0.0])


def test_sensitivities_take_their_layer_s() -> None:
    keys = [MatrixKey(layer, p) for layer in range(3) for p in ("q", "v")]
    alone = estimate_sensitivities(KLAnchor(key, 0.1, 0.2, 0.01) for key in keys)
    multipliers = company_multipliers(
        LayerSaving(layer, "a", ratio * np.array([1.0, 2.0]), np.array([1.1, 1.9]))
        for layer, ratio in ((0, 3.0), (1, 1.0))
    )
    found = in_company(alone, multipliers)
    for key in keys:
        ratio = {0: 3.0, 1: 1.0, 2: 1.0}[key.layer_idx]
        assert found[key].value == pytest.approx(ratio * alone[key].value)
        assert found[key].raw == alone[key].raw
        spread = math.log(found[key].high / found[key].low)
        assert spread == pytest.approx(2 * 1.96 * found[key].log_se, rel=1e-3)
    assert found[keys[0]].log_se > alone[keys[0]].log_se
    assert found[keys[-1]] == alone[keys[-1]]


def test_refusals() -> None:
    with pytest.raises(FitError, match="same sequences"):
        company_multipliers([])
    with pytest.raises(FitError, match="same sequences"):
        company_multipliers([LayerSaving(0, "a", [1.0, 2.0], [1.0, 2.0, 3.0])])
