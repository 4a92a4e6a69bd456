"""Values of the trellis's states, made for a unit Gaussian source, and their errors.

Up to ``TRAINED`` states the values are stored. Beyond that they are quantiles of a Gaussian in a stored order: the rank
of a state's value is A·s with A a matrix over GF(2). ``train_trellis`` made both and says how.

Shapes: S = 2^L states.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from compress_core.config import CODEBOOK_BITS, STATES

PATH = Path(__file__).with_name("trellis_tables.npz")
#: tables of up to this many states are stored value by value
TRAINED = 2**12
#: stored values are multiples of this
GRID = 2.0**-12
#: the others of this, so that no library's last digit can change a stored model
_FINE_GRID = 2.0**-20


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


def invertible(rows: Sequence[int]) -> bool:
    """Whether a square matrix over GF(2) is invertible; each row is an integer of its bits."""
    left = list(rows)
    for bit in range(len(rows)):
        pivot = next((row for row in left if row >> bit & 1), None)
        if pivot is None:
            return False
        left.remove(pivot)
        left = [row ^ pivot if row >> bit & 1 else row for row in left]
    return True


def linear_ranks(rows: Sequence[int]) -> NDArray[np.int64]:
    """A·s (S,) for all states s: the first row gives the highest bit of the rank."""
    states = np.arange(1 << len(rows))
    ranks = np.zeros_like(states)
    for row in rows:
        ranks = (ranks << 1) | (np.bitwise_count(states & int(row)).astype(np.int64) & 1)
    return ranks


def quantiles(ranks: NDArray[np.int64], spread: float) -> NDArray[np.float64]:
    """Values (S,) float64: the quantiles of a Gaussian of deviation ``spread`` at the ranks."""
    return spread * ndtri((ranks + 0.5) / len(ranks))


@lru_cache(maxsize=1)
def _stored() -> dict[str, NDArray[np.generic]]:
    return stored_tables()


def stored_tables() -> dict[str, NDArray[np.generic]]:
    """The arrays of the file: rows_k_L uint16, spread_k_L float32, steps_k_L int16 multiples of GRID."""
    with np.load(PATH, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@lru_cache(maxsize=32)
def trellis_table(bits: int, states: int) -> Tensor:
    """Values (S,) float32 of the states, all distinct; for ``bits`` bits a step. Not to be written to.

    Raises:
        ValueError: see :func:`check`.
    """
    check(bits, states)
    key = f"{bits}_{states.bit_length() - 1}"
    if states <= TRAINED:
        return torch.from_numpy(_stored()[f"steps_{key}"].astype(np.float32) * np.float32(GRID))
    rows = [int(row) for row in _stored()[f"rows_{key}"]]
    values = quantiles(linear_ranks(rows), float(_stored()[f"spread_{key}"]))
    return torch.from_numpy((np.round(values / _FINE_GRID) * _FINE_GRID).astype(np.float32))


def gaussian_mse(bits: int, states: int) -> float:
    """Mean squared error on a unit Gaussian in tiles of 128 × 2, measured on 10^6 weights (65,536 past 2^12 states)."""
    check(bits, states)
    return _GAUSSIAN_MSE[bits, states]


_GAUSSIAN_MSE: dict[tuple[int, int], float] = {
    (2, 2**8): 0.07397,
    (2, 2**9): 0.07209,
    (2, 2**10): 0.07065,
    (2, 2**11): 0.0704,
    (2, 2**12): 0.06888,
    (2, 2**13): 0.06834,
    (2, 2**14): 0.0679,
    (2, 2**15): 0.06706,
    (2, 2**16): 0.06754,
    (3, 2**8): 0.01938,
    (3, 2**9): 0.01876,
    (3, 2**10): 0.01829,
    (3, 2**11): 0.0179,
    (3, 2**12): 0.01765,
    (3, 2**13): 0.0176,
    (3, 2**14): 0.0174,
    (3, 2**15): 0.01775,
    (3, 2**16): 0.01705,
    (4, 2**8): 0.005141,
    (4, 2**9): 0.004975,
    (4, 2**10): 0.004803,
    (4, 2**11): 0.004647,
    (4, 2**12): 0.004505,
    (4, 2**13): 0.004512,
    (4, 2**14): 0.00451,
    (4, 2**15): 0.004506,
    (4, 2**16): 0.004507,
    (5, 2**8): 0.001404,
    (5, 2**9): 0.001309,
    (5, 2**10): 0.001251,
    (5, 2**11): 0.001194,
    (5, 2**12): 0.001165,
    (5, 2**13): 0.001157,
    (5, 2**14): 0.00115,
    (5, 2**15): 0.001157,
    (5, 2**16): 0.001123,
    (6, 2**8): 0.0003942,
    (6, 2**9): 0.0003553,
    (6, 2**10): 0.0003285,
    (6, 2**11): 0.0003219,
    (6, 2**12): 0.0002982,
    (6, 2**13): 0.0002934,
    (6, 2**14): 0.0002986,
    (6, 2**15): 0.0002986,
    (6, 2**16): 0.0002846,
    (7, 2**8): 0.0001215,
    (7, 2**9): 0.0001097,
    (7, 2**10): 8.925e-05,
    (7, 2**11): 8.429e-05,
    (7, 2**12): 7.925e-05,
    (7, 2**13): 7.687e-05,
    (7, 2**14): 7.476e-05,
    (7, 2**15): 7.945e-05,
    (7, 2**16): 7.208e-05,
    (8, 2**8): 4.097e-05,
    (8, 2**9): 4.272e-05,
    (8, 2**10): 2.492e-05,
    (8, 2**11): 2.312e-05,
    (8, 2**12): 2.068e-05,
    (8, 2**13): 1.958e-05,
    (8, 2**14): 1.902e-05,
    (8, 2**15): 2.056e-05,
    (8, 2**16): 1.976e-05,
}
