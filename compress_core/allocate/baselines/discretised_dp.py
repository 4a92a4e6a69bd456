"""The plan's dynamic program over a discretised budget (phase 3, ``budget_allocator``).

Bytes are rounded to buckets, up, so that the budget holds; each row's smallest option counts as nothing, without which
1,000 buckets are too coarse to fit 560 matrices at all. Every other option wastes half a bucket on average, so the
result loses against the optimum: benchmarks/results/allocate-cpu.md has the figures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.baselines.table import budget_table
from compress_core.errors import ConfigError

BUCKETS = 1000
_MAX_BUCKETS = 1_000_000


def discretised_dp_choice(
    errors: ArrayLike, nbytes: ArrayLike, budget: int, *, buckets: int = BUCKETS
) -> NDArray[np.int64]:
    """(n,) columns, never over the budget: optimal for bytes rounded up to ``buckets`` equal parts of the room.

    The room is what the budget leaves above the smallest options. Time is n·k·buckets, memory n·buckets.

    Args and errors raised as ``solve_allocation``; also ConfigError where ``buckets`` is not 1 to 1,000,000.
    """
    if not 1 <= buckets <= _MAX_BUCKETS:
        raise ConfigError(f"buckets must be 1 to {_MAX_BUCKETS:,}, not {buckets}")
    table = budget_table(errors, nbytes, budget)
    n, k = table.errors.shape
    unit = max(-(-table.room // buckets), 1)
    capacity = table.room // unit
    extra = table.nbytes - table.smallest_bytes[:, None]
    fits = np.isfinite(table.errors) & (extra <= table.room)
    cost = np.where(fits, -(-np.where(fits, extra, 0) // unit), capacity + 1)
    # best[c]: least error so far with at most c buckets used
    best = np.zeros(capacity + 1)
    taken = np.zeros((n, capacity + 1), dtype=np.min_scalar_type(k))
    for row in range(n):
        after = np.full(capacity + 1, np.inf)
        for column in np.flatnonzero(cost[row] <= capacity):
            step = int(cost[row, column])
            candidate = best[: capacity + 1 - step] + table.errors[row, column]
            better = candidate < after[step:]
            after[step:][better] = candidate[better]
            taken[row, step:][better] = column
        best = after
    choice = np.zeros(n, dtype=np.int64)
    left = capacity
    for row in range(n - 1, -1, -1):
        choice[row] = taken[row, left]
        left -= int(cost[row, choice[row]])
    return choice
