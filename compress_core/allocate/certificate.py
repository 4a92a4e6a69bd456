"""What anyone can recompute from an allocation's multiplier in O(n·k), without trusting the solver."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _priced(errors: ArrayLike, nbytes: ArrayLike, multiplier: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n, k) e + λ·(w − ŵ) and (n,) ŵ, the smallest available bytes of each row."""
    e = np.asarray(errors, dtype=np.float64)
    w = np.asarray(nbytes, dtype=np.int64)
    smallest = np.where(np.isfinite(e), w, np.iinfo(np.int64).max).min(axis=1)
    return e + multiplier * (w - smallest[:, None]), smallest


def lagrangian_bound(errors: ArrayLike, nbytes: ArrayLike, budget: int, multiplier: float) -> float:
    """Σ_i min_k (e_ik + λ·w_ik) − λ·B: a lower bound of every feasible objective, for any λ ≥ 0.

    Written as Σ_i min_k (e_ik + λ·(w_ik − ŵ_i)) − λ·(B − Σ ŵ_i) with ŵ_i the smallest bytes of row i, which is the same
    number with less cancellation.
    """
    priced, smallest = _priced(errors, nbytes, multiplier)
    return math.fsum([*priced.min(axis=1).tolist(), -multiplier * (budget - int(smallest.sum()))])


def reduced_costs(errors: ArrayLike, nbytes: ArrayLike, multiplier: float) -> NDArray[np.float64]:
    """(n, k) e_ik + λ·w_ik − its least value in the row: what pinning option k raises the bound by, at least.

    0 marks the options that the relaxation is content with; inf those that are not available. The second smallest
    value of a row is the regret of its runner-up.
    """
    priced, _ = _priced(errors, nbytes, multiplier)
    return priced - priced.min(axis=1, keepdims=True)
