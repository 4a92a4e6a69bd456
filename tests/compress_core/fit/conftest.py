"""Measurements planted from a known law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from compress_core.fit import ErrorObservation, Spectra
from compress_core.matrix import PROJECTIONS, MatrixKey
from compress_core.measurement import ResidualSpectrum

LAW = {"alpha": 0.97, "beta": 1.8, "gamma": 0.03, "delta": 0.6}
LAWS: dict[str, dict[str, float]] = {
    "additive": LAW,
    "log_linear": {"beta": 1.8, "delta": 0.3},
    # with residual spectra
    "spectral": {"beta": 1.9, "eta": 1.1},
    # without
    "multiplicative": {"beta": 1.9, "gamma": 0.8, "delta": 0.9},
}
#: parameters in which projection types differ, and by how much for each unit of ``between``
_DIFFER = {"beta": 1.0, "delta": 0.3, "eta": 1.0, "gamma": 1.0}


def law_of(law: str, p: Mapping[str, float], b: int, r: int, largest: int, captured: float) -> float:
    match law:
        case "additive":
            return p["alpha"] * 2 ** (-p["beta"] * b) + p["gamma"] * (r + 1) ** -p["delta"]
        case "log_linear":
            return 2 ** (-p["beta"] * b) * (r + 1) ** -p["delta"]
        case "spectral":
            return float(2 ** (-p["beta"] * b) * (1 - captured) ** p["eta"])
    return float(2 ** (-p["beta"] * b) * np.exp(-p["gamma"] * (r / largest) ** p["delta"]))


@dataclass(frozen=True, slots=True)
class Planted:
    observations: list[ErrorObservation]
    scales: dict[MatrixKey, float]
    #: projection → parameters
    types: dict[str, dict[str, float]]
    spectra: Spectra


def plant_law(
    law: str = "additive",
    *,
    layers: int = 6,
    bits: tuple[int, ...] = (2, 3, 4),
    ranks: tuple[int, ...] = (0, 8, 32),
    noise: float = 0.0,
    between: float = 0.0,
    noisy: str | None = None,
    outliers: int = 0,
    seed: int = 0,
) -> Planted:
    """Observations of E = s·g(b, r)·exp(noise).

    Args:
        between: standard deviation of the parameters between projection types.
        noisy: a projection type with three times the noise.
        outliers: so many errors are 20 times too large.
    """
    rng = np.random.default_rng(seed)
    # the plan's α and γ are the same for all
    differ = {name: sd for name, sd in _DIFFER.items() if law != "additive" or name in ("beta", "delta")}
    types = {
        p: {
            name: value + (between * differ[name] * rng.normal() if between and name in differ else 0.0)
            for name, value in LAWS[law].items()
        }
        for p in PROJECTIONS
    }
    scales = {MatrixKey(i, p): float(np.exp(rng.normal())) for i in range(layers) for p in PROJECTIONS}
    known_ranks = np.array([1, 2, 4, 8, 16, 32, 64])
    spectra, out = {}, []
    for key, s in scales.items():
        bend = rng.uniform(0.2, 0.5)
        shares = 1 - (1 + known_ranks / 8) ** -bend
        spectra[key, 2] = ResidualSpectrum(tuple(known_ranks.tolist()), tuple(shares.tolist()))
        for b in bits:
            for r in ranks:
                captured = 1 - (1 + r / 8) ** -bend
                g = law_of(law, types[key.projection], b, r, max(ranks), captured)
                spread = noise * (3 if key.projection == noisy else 1)
                out.append(ErrorObservation(key, b, r, s * g * float(np.exp(spread * rng.normal()))))
    for i in rng.choice(len(out), outliers, replace=False):
        o = out[i]
        out[i] = ErrorObservation(o.matrix, o.b_q, o.rank, o.error * 20)
    return Planted(out, scales, types, spectra)


@pytest.fixture(scope="session")
def plant() -> Callable[..., tuple[list[ErrorObservation], dict[MatrixKey, float]]]:
    """Observations of the plan's law, and the scales s."""

    def planted(**kwargs: int) -> tuple[list[ErrorObservation], dict[MatrixKey, float]]:
        found = plant_law(**kwargs)
        return found.observations, found.scales

    return planted


@pytest.fixture(scope="session")
def plant_any() -> Callable[..., Planted]:
    return plant_law


@pytest.fixture(scope="session")
def law() -> dict[str, float]:
    return LAW


@pytest.fixture(scope="session")
def laws() -> dict[str, dict[str, float]]:
    return LAWS
