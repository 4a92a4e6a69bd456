"""Values of the trellis's states: made for a unit Gaussian source.

Quantiles of the Gaussian in a hashed order, antisymmetric: the complement of a state has its negative.

Shapes: S = states.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from compress_core.config import CODEBOOK_BITS, STATES

#: values are multiples of this, so that no library's last digit can change a stored model
GRID = 2.0**-16


def check(bits: int, states: int) -> None:
    """Refuse what no table is made for.

    Raises:
        ValueError: bits or states out of range, or states no power of two.
    """
    allowed = CODEBOOK_BITS["trellis"]
    if bits not in allowed:
        raise ValueError(f"the trellis codebook has {allowed[0]} to {allowed[-1]} bits, not {bits}")
    if not STATES[0] <= states <= STATES[1] or states & (states - 1):
        raise ValueError(f"a trellis has a power of two of states in {STATES[0]} … {STATES[1]}, not {states}")


def _hash(numbers: np.ndarray) -> np.ndarray:
    """64 well-mixed bits of each number (the finaliser of splitmix64)."""
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=32)
def trellis_table(bits: int, states: int) -> Tensor:
    """Values (S,) float32 of the states, all distinct; for ``bits`` bits a step.

    Raises:
        ValueError: see :func:`check`.
    """
    check(bits, states)
    half = states // 2
    magnitude = np.round(ndtri(0.5 + (np.arange(half) + 0.5) / states) / GRID) * GRID
    mixed = _hash(np.arange(half))
    lower = magnitude[np.argsort(mixed)] * np.where(mixed & np.uint64(1), 1.0, -1.0)
    return torch.from_numpy(np.concatenate([lower, -lower[::-1]]).astype(np.float32))


def gaussian_mse(bits: int, states: int) -> float:
    """Mean squared error on a unit Gaussian in tiles of 128 × 2, as measured; nan where it was not."""
    check(bits, states)
    return _GAUSSIAN_MSE.get((bits, states), float("nan"))


_GAUSSIAN_MSE: dict[tuple[int, int], float] = {}
