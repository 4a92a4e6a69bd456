"""Measurements planted from a known law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compress_core.fit import ErrorObservation
from compress_core.matrix import PROJECTIONS, MatrixKey

LAW = {"alpha": 0.97, "beta": 1.8, "gamma": 0.03, "delta": 0.6}


def planted(
    *,
    layers: int = 6,
    bits: tuple[int, ...] = (2, 3, 4),
    ranks: tuple[int, ...] = (0, 8, 32),
    noise: float = 0.0,
    outliers: int = 0,
    seed: int = 0,
) -> tuple[list[ErrorObservation], dict[MatrixKey, float]]:
    """Observations of E = s·(α·2^(−βb) + γ·(r+1)^(−δ))·exp(noise), and the scales s."""
    rng = np.random.default_rng(seed)
    scales = {MatrixKey(i, p): float(np.exp(rng.normal())) for i in range(layers) for p in PROJECTIONS}
    out = []
    for key, s in scales.items():
        for b in bits:
            for r in ranks:
                g = LAW["alpha"] * 2 ** (-LAW["beta"] * b) + LAW["gamma"] * (r + 1) ** -LAW["delta"]
                out.append(ErrorObservation(key, b, r, s * g * float(np.exp(noise * rng.normal()))))
    for i in rng.choice(len(out), outliers, replace=False):
        o = out[i]
        out[i] = ErrorObservation(o.matrix, o.b_q, o.rank, o.error * 20)
    return out, scales


@pytest.fixture(scope="session")
def plant() -> Callable[..., tuple[list[ErrorObservation], dict[MatrixKey, float]]]:
    return planted


@pytest.fixture(scope="session")
def law() -> dict[str, float]:
    return LAW
