"""Minimax: the least threshold on the largest error of any matrix that the budget can pay for.

ModelOpt's AutoQuantize in its KL mode and mlx-lm's dynamic quantisation search a threshold like this. It minimises the
worst matrix's term, not the sum, and leaves unused what the next threshold cannot use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.baselines.table import NO_BYTES, BudgetTable, budget_table


def minimax_choice(errors: ArrayLike, nbytes: ArrayLike, budget: int) -> NDArray[np.int64]:
    """(n,) columns: each row's smallest option whose error does not exceed the threshold; never over the budget.

    Args and errors raised as ``solve_allocation``.
    """
    table = budget_table(errors, nbytes, budget)
    # below the largest of the rows' least errors no threshold can be kept
    least = table.errors.min(axis=1).max()
    thresholds = np.unique(table.errors[np.isfinite(table.errors) & (table.errors >= least)])
    allowed = int(budget)
    # bytes fall as the threshold rises, and the highest one allows every row its smallest option, which fits
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if _bytes(table, _at(table, thresholds[middle])) <= allowed:
            high = middle
        else:
            low = middle + 1
    return _at(table, thresholds[high])


def _at(table: BudgetTable, threshold: float) -> NDArray[np.int64]:
    """Each row's smallest option within the threshold, of equal ones that of least error."""
    nbytes = np.where(table.errors <= threshold, table.nbytes, NO_BYTES)
    return np.lexsort((table.errors, nbytes), axis=-1)[:, 0]


def _bytes(table: BudgetTable, choice: NDArray[np.int64]) -> int:
    return int(table.nbytes[np.arange(len(choice)), choice].sum())
