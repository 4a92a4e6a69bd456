"""The frontier of objective against bytes: every allocation that is optimal for some price of a byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.relaxation import hull_segments, sort_and_drop_dominated
from compress_core.allocate.solver import check_table


@dataclass(frozen=True, eq=False, slots=True)
class Frontier:
    """Supported points by rising bytes: the corners of the lower convex hull of all allocations.

    At exactly the bytes of a point its objective is optimal. Between two points the line through them bounds every
    allocation from below; ``solve_allocation`` finds the best one there.
    """

    #: (m,) int64
    total_bytes: NDArray[np.int64]
    #: (m,)
    objective: NDArray[np.float64]
    #: (m,) objective saved per byte in reaching the point; the first has inf, nothing smaller exists
    multiplier: NDArray[np.float64]

    def lower_bound(self, budget: int) -> float:
        """Lower bound of the objective at a budget; inf below the smallest allocation."""
        if budget < self.total_bytes[0]:
            return float("inf")
        return float(np.interp(budget, self.total_bytes, self.objective))


def frontier(errors: ArrayLike, nbytes: ArrayLike) -> Frontier:
    """All supported allocations of a table in one pass over the sorted hull segments.

    Args and errors raised as ``solve_allocation``, without a budget.
    """
    e, w = check_table(errors, nbytes)
    table = sort_and_drop_dominated(e, np.where(np.isfinite(e), w, np.iinfo(np.int64).max))
    segments = hull_segments(table)
    order = np.argsort(-segments.slope, kind="stable")
    slope, step = segments.slope[order], segments.step[order]
    # segments of one slope are one edge: only its ends are corners that need no further choice
    last = np.append(slope[1:] != slope[:-1], True) if len(slope) else np.zeros(0, dtype=bool)
    start_bytes = int(table.nbytes[:, 0].sum())
    start = float(table.errors[:, 0].sum())
    total = start_bytes + np.cumsum(step)[last]
    # from the far end, where the values are small, to keep relative precision
    gained = np.cumsum((slope * step)[::-1])[::-1]
    end = float(np.where(np.isfinite(table.errors), table.errors, np.inf).min(axis=1).sum())
    after = np.append(end + gained[1:], end)[last] if len(slope) else np.zeros(0)
    return Frontier(
        np.concatenate([[start_bytes], total]).astype(np.int64),
        np.concatenate([[start], after]),
        np.concatenate([[np.inf], slope[last]]),
    )
