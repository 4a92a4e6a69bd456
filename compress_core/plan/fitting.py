"""From timed pieces of work to coefficients: non-negative least squares of relative errors, above a floor.

Small matrices say little of what grows with n³, so every coefficient of a product is at least what the method's
operations take at the rate of a large product (``operations.FLOORS``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from compress_core.plan.operations import FEATURES_OF, FLOORS, Kind, features
from compress_core.plan.rates import Observation, TermKey, Terms, observed

#: that a probe of small matrices cannot do better than, whatever its residuals
_LEAST_UNCERTAINTY = 1.3

FloatArray = NDArray[np.float64]


def fit_terms(observations: Iterable[Observation], product: float) -> tuple[dict[TermKey, Terms], float]:
    """Coefficients of every kind of work, and the factor by which times scatter around them.

    The bits of one codebook share all coefficients but that of the weights, which holds the search.

    Args:
        product: float32 operations a second of a large product.
    """
    terms: dict[TermKey, Terms] = {}
    scatter: list[float] = []
    for (kind, codebook, states), group in observed(observations).items():
        found, errors = _fit_group(kind, group, product)
        scatter += errors
        terms |= {TermKey(kind, codebook, b_q, states): coefficients for b_q, coefficients in found.items()}
    typical = math.exp(2 * float(np.sqrt(np.mean(np.square(scatter))))) if scatter else _LEAST_UNCERTAINTY
    return terms, max(_LEAST_UNCERTAINTY, typical)


def _fit_group(
    kind: Kind, group: Sequence[Observation], product: float
) -> tuple[dict[int, dict[str, float]], list[float]]:
    """Coefficients by b_q, and log(predicted / measured) of each observation."""
    bits = sorted({found.b_q for found in group})
    shared = [name for name in FEATURES_OF[kind] if name != "weights"]
    own = "weights" in FEATURES_OF[kind]
    floor = np.array([FLOORS[kind].get(name, 0.0) / product for name in shared] + [0.0] * (len(bits) * own))
    rows = []
    for found in group:
        values = features(kind, found.size)
        each = [values["weights"] * (found.b_q == b) for b in bits] if own else []
        rows.append([values[name] for name in shared] + each)
    design: FloatArray = np.array(rows)
    seconds: FloatArray = np.array([found.seconds for found in group])
    coefficients = floor + _above(design, seconds, seconds - design @ floor)
    predicted = design @ coefficients
    errors = [float(error) for error in np.log(predicted / seconds)]
    terms = {
        b: dict(zip(shared, map(float, coefficients), strict=False))
        | ({"weights": float(coefficients[len(shared) + i])} if own else {})
        for i, b in enumerate(bits)
    }
    return terms, errors


def _above(design: FloatArray, seconds: FloatArray, left: FloatArray) -> FloatArray:
    """Non-negative coefficients of what the floor leaves, by least relative squares."""
    weighted = design / seconds[:, None]
    scale = np.maximum(weighted.max(axis=0), np.finfo(float).tiny)
    solution, _ = nnls(weighted / scale, np.maximum(left, 0.0) / seconds)
    return np.asarray(solution / scale)
