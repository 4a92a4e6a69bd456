"""Partial pooling: the parameters of each projection type, shrunk to the common ones as their errors ask for.

θ_g ~ N(θ₀, T) with diagonal T, and each type's data say θ_g ~ N(I_g⁻¹·h_g, I_g⁻¹). T is estimated by restricted
maximum likelihood (EM with θ₀ integrated out: Harville 1977, Laird & Ware 1982), under a prior of √T ∝ T that keeps it
from zero: seven types say little of what types scatter, and a T of zero would make every interval too narrow (Chung et
al. 2013). All formulas are written without I_g⁻¹ and T⁻¹, so a type whose data cannot tell a parameter (I_g singular)
takes the common one, and T may be zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_EM_STEPS = 10
#: a relative change of T that moves no interval
_SETTLED = 0.02
#: parameters are of order one, and so at most is what types differ by: data that say nothing must not say more
LARGEST_SPREAD = 1.0
_SINGULAR = 1e12
_LEAST_SPREAD = 1e-20


@dataclass(frozen=True, eq=False, slots=True)
class Pooled:
    """Posterior of the common parameters and of each type's."""

    #: (p,) and (p, p)
    common: FloatArray
    common_covariance: FloatArray
    #: (G, p) and (G, p, p)
    theta: FloatArray
    covariance: FloatArray
    #: (p,) variance between types
    spread: FloatArray
    #: False where no type's data tell the common parameters apart
    identified: bool


def pool(
    information: FloatArray,
    weighted: FloatArray,
    spread: FloatArray,
    *,
    prior: tuple[FloatArray, FloatArray],
    estimate: bool = True,
) -> Pooled:
    """Combine types.

    Args:
        information: (G, p, p) I_g.
        weighted: (G, p) h_g = I_g·θ̂_g.
        spread: (p,) T to start from, or to keep.
        prior: (p,) mean and precision of a prior of θ₀.
        estimate: whether T is estimated.
    """
    for _ in range(_EM_STEPS if estimate else 0):
        found, own = _posterior(information, weighted, spread, prior)
        # E[(θ_g − θ₀)²]: of the means, of θ_g given θ₀, and of θ₀
        squares = ((found.theta - found.common) ** 2 + np.einsum("gkk->gk", own)).sum(axis=0)
        before, spread = spread, np.minimum(squares / max(len(found.theta) - 2, 1), LARGEST_SPREAD)
        if (np.abs(spread - before) < _SETTLED * spread).all():
            break
    return _posterior(information, weighted, spread, prior)[0]


def _posterior(
    information: FloatArray, weighted: FloatArray, spread: FloatArray, prior: tuple[FloatArray, FloatArray]
) -> tuple[Pooled, FloatArray]:
    """The posterior given T, and (G, p, p) the covariance of θ_g − θ₀ in it."""
    mean, precision = prior
    # a spread of zero is one that no data can tell from it
    s = np.sqrt(np.maximum(spread, _LEAST_SPREAD))
    # S·I_g·S with S = √T, diagonalised: no difference of large numbers, and no inverse of a singular I_g
    values, vectors = np.linalg.eigh(information * np.outer(s, s))
    values = np.maximum(values, 0.0)[:, None, :]
    turned = np.swapaxes(vectors, 1, 2)
    shrunk = vectors / (1 + values) @ turned
    trusted = vectors * (values / (1 + values)) @ turned
    # V_g = (I_g + T⁻¹)⁻¹, and how far θ_g follows θ₀ (V_g·T⁻¹) and its own data (V_g·I_g)
    v = shrunk * np.outer(s, s)
    follow, own = shrunk * np.outer(s, 1 / s), trusted * np.outer(s, 1 / s)
    # each type's estimate scatters around θ₀ by T + I_g⁻¹; this is the inverse of that
    total = np.diag(precision) + (trusted / np.outer(s, s)).sum(axis=0)
    right = precision * mean + np.einsum("gji,gj->i", follow, weighted)
    covariance, identified = _inverse((total + total.T) / 2)
    common = covariance @ right
    theta = np.einsum("gij,gj->gi", v, weighted) + follow @ common
    around = v + follow @ covariance @ np.swapaxes(follow, 1, 2)
    return (
        Pooled(common, covariance, theta, around, spread, identified),
        v + own @ covariance @ np.swapaxes(own, 1, 2),
    )


def _inverse(matrix: FloatArray) -> tuple[FloatArray, bool]:
    """Inverse of a positive matrix whose rows may differ by many orders of magnitude, and whether there is one."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    values, vectors = np.linalg.eigh(matrix * np.outer(scale, scale))
    told = values > values[-1] / _SINGULAR
    identified = bool(told.all() and values[-1] > 0)
    # what no data and no prior tell stays where it is
    kept = np.where(told & (values > 0), values, np.inf)
    return np.asarray((vectors / kept) @ vectors.T * np.outer(scale, scale)), identified
