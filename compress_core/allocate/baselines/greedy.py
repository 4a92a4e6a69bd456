"""Greedy: from the smallest options, always the step that saves most error per byte and still fits.

The idea of exllamav3's optimiser and of GGUF-Tool-Suite's heap, without their exponents. With many small matrices it
comes within a few millionths of the optimum; with few it may not, and it never knows how far away it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.baselines.table import BudgetTable, budget_table


def greedy_choice(errors: ArrayLike, nbytes: ArrayLike, budget: int) -> NDArray[np.int64]:
    """(n,) columns, never over the budget. A step may go to any later option of a row, not only to the next one.

    Args and errors raised as ``solve_allocation``.
    """
    table = budget_table(errors, nbytes, budget)
    n = len(table.errors)
    choice = table.smallest.copy()
    room = table.room
    target = np.zeros(n, dtype=np.int64)
    ratio = np.empty(n)
    for row in range(n):
        target[row], ratio[row] = _best_step(table, row, int(choice[row]), room)
    while ratio.max() > 0:
        row = int(ratio.argmax())
        cost = int(table.nbytes[row, target[row]] - table.nbytes[row, choice[row]])
        if cost <= room:
            choice[row] = target[row]
            room -= cost
        # else the room has shrunk since this step was found; another one of the row may still fit
        target[row], ratio[row] = _best_step(table, row, int(choice[row]), room)
    return choice


def _best_step(table: BudgetTable, row: int, at: int, room: int) -> tuple[int, float]:
    """Column and error saved per byte of the best step that fits; 0 where none saves anything."""
    gain = table.errors[row, at] - table.errors[row]
    cost = table.nbytes[row] - table.nbytes[row, at]
    good = (gain > 0) & (cost > 0) & (cost <= room)
    ratio = np.where(good, gain / np.where(good, cost, 1), 0.0)
    column = int(ratio.argmax())
    return column, float(ratio[column])
