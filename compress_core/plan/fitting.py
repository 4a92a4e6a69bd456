"""From timed pieces of work to coefficients: bounded least squares of relative errors.

Small matrices say little of what grows with n³: overheads that do not grow look like it. So every coefficient of a
product lies between what the method's operations take at the rate of a large product (``operations.FLOORS``) and a
small multiple of that (``CEILINGS``). All other coefficients are only non-negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from compress_core.plan.operations import CEILINGS, FEATURES_OF, FLOORS, Kind, features
from compress_core.plan.rates import Observation, TermKey, Terms, observed

#: that a probe of small matrices cannot do better than, whatever its residuals
_LEAST_UNCERTAINTY = 1.3
#: bounds must not touch
_APART = 1 + 1e-6

FloatArray = NDArray[np.float64]


def fit_terms(
    observations: Iterable[Observation], product: float, slack: float = 1.0
) -> tuple[dict[TermKey, Terms], float]:
    """Coefficients of every kind of work, and the factor by which times scatter around them.

    The bits of one codebook share all coefficients but that of the weights, which holds the search.

    Args:
        product: float32 operations a second of a large product.
        slack: by which the ceilings are raised where narrow products are far slower than large ones.
    """
    terms: dict[TermKey, Terms] = {}
    scatter: list[float] = []
    for (kind, codebook, states), group in observed(observations).items():
        found, errors = _fit_group(kind, group, product, slack)
        scatter += errors
        terms |= {TermKey(kind, codebook, b_q, states): coefficients for b_q, coefficients in found.items()}
    typical = math.exp(2 * float(np.sqrt(np.mean(np.square(scatter))))) if scatter else _LEAST_UNCERTAINTY
    return terms, max(_LEAST_UNCERTAINTY, typical)


def _fit_group(
    kind: Kind, group: Sequence[Observation], product: float, slack: float
) -> tuple[dict[int, dict[str, float]], list[float]]:
    """Coefficients by b_q, and log(predicted / measured) of each observation."""
    bits = sorted({found.b_q for found in group})
    shared = [name for name in FEATURES_OF[kind] if name != "weights"]
    own = "weights" in FEATURES_OF[kind]
    none = [0.0] * (len(bits) * own)
    lower = np.array([FLOORS[kind].get(name, 0.0) / product for name in shared] + none)
    times = np.array([max(slack * CEILINGS.get(name, 1.0), _APART) for name in shared] + none)
    upper = np.where(lower > 0, lower * times, math.inf)
    rows = []
    for found in group:
        values = features(kind, found.size)
        each = [values["weights"] * (found.b_q == b) for b in bits] if own else []
        rows.append([values[name] for name in shared] + each)
    design: FloatArray = np.array(rows)
    seconds: FloatArray = np.array([found.seconds for found in group])
    coefficients = _bounded(design / seconds[:, None], lower, upper)
    errors = [float(error) for error in np.log(design @ coefficients / seconds)]
    terms = {
        b: dict(zip(shared, map(float, coefficients), strict=False))
        | ({"weights": float(coefficients[len(shared) + i])} if own else {})
        for i, b in enumerate(bits)
    }
    return terms, errors


def _bounded(relative: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Coefficients within their bounds for which ``relative @ coefficients`` is nearest to one."""
    scale = 1 / np.maximum(np.abs(relative).max(axis=0), np.finfo(float).tiny)
    # active sets end at the optimum; scipy's default, an interior method, divides by zero where a start lies on a bound
    found = lsq_linear(relative * scale, np.ones(len(relative)), bounds=(lower / scale, upper / scale), method="bvls")
    return np.asarray(np.clip(found.x * scale, lower, upper))
