"""The frontier of objective against bytes: every allocation that is optimal for some price of a byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.constrained import ConstrainedTable
from compress_core.allocate.relaxation import hull_segments, sort_and_drop_dominated
from compress_core.allocate.solver import check_table
from compress_core.errors import ConfigError


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
    #: (n,) columns at the first point
    first: NDArray[np.int64]
    #: (s,) the changes of single rows on the way, in order, and (m,) how many of them each point has made
    changed_row: NDArray[np.int64]
    changed_column: NDArray[np.int64]
    n_changes: NDArray[np.int64]

    def choice(self, point: int) -> NDArray[np.int64]:
        """(n,) columns of the allocation at a point."""
        columns = self.first.copy()
        made = int(self.n_changes[point])
        columns[self.changed_row[:made]] = self.changed_column[:made]  # of a row's changes the last one stays
        return columns

    def point_within(self, budget: int) -> int | None:
        """The last point that fits a budget: feasible there, and optimal at its own bytes; None where none fits."""
        return (
            int(np.searchsorted(self.total_bytes, budget, side="right")) - 1 if self.total_bytes[0] <= budget else None
        )

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
    row, end_position = segments.row[order], segments.end[order]
    return Frontier(
        np.concatenate([[start_bytes], total]).astype(np.int64),
        np.concatenate([[start], after]),
        np.concatenate([[np.inf], slope[last]]),
        table.column[:, 0].copy(),
        row,
        table.column[row, end_position],
        np.concatenate([[0], np.flatnonzero(last) + 1]).astype(np.int64),
    )


def constrained_frontier(table: ConstrainedTable) -> Frontier:
    """The frontier of a problem under constraints; ``choice`` has the menu's column of every matrix.

    Raises:
        ConfigError: under at most m configs, where the set of configs changes along the way: solve at single budgets.
    """
    if table.max_configs is not None:
        raise ConfigError(
            f"there is no frontier under at most {table.max_configs} configs: solve at single budgets, or offer a menu "
            "of so many configs"
        )
    merged = table.merged()
    found = frontier(merged.errors, merged.nbytes)
    # a change of a row is a change of all of its matrices
    component_of = table.component[table.member_of]
    by_component = np.argsort(component_of, kind="stable")
    ends = np.cumsum(np.bincount(component_of))
    members = np.split(by_component, ends[:-1])
    matrices = [members[row] for row in found.changed_row]
    counts = np.array([len(m) for m in matrices], dtype=np.int64)
    matrix = np.concatenate([*matrices, np.zeros(0, dtype=np.int64)])
    option = np.repeat(found.changed_column, counts)
    return Frontier(
        found.total_bytes,
        found.objective,
        found.multiplier,
        table.spread(merged.columns_of(found.first)),
        matrix,
        merged.columns[table.member_of[matrix], option],
        np.concatenate([[0], np.cumsum(counts)])[found.n_changes],
    )
