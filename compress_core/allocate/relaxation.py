"""The linear relaxation of the multiple-choice knapsack: dominance, convex hulls, multiplier, first incumbent.

Kellerer, Pferschy, Pisinger, *Knapsack Problems* (2004), ch. 11: the relaxation is solved by walking down the
steepest segments of the lower convex hulls of all classes (Dyer 1984, Zemel 1984); at most one class is fractional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: rounds of single-row improvement of the first incumbent; it only has to be good, the enumeration makes it best
_IMPROVEMENT_ROUNDS = 64
#: rounds and moves of its improvement by pairs
_PAIR_ROUNDS = 16
_PAIR_MOVES = 4096


@dataclass(frozen=True, eq=False, slots=True)
class SortedTable:
    """The available, undominated options, each row sorted by bytes; what is not there has error inf.

    ``errors`` (n, k) float64 strictly falling along a row, ``nbytes`` (n, k) int64 strictly rising, ``column`` (n, k)
    int64 the option's column in the caller's table.
    """

    errors: NDArray[np.float64]
    nbytes: NDArray[np.int64]
    column: NDArray[np.int64]


def sort_and_drop_dominated(errors: NDArray[np.float64], nbytes: NDArray[np.int64]) -> SortedTable:
    """Sort each row by (bytes, error) and drop every option that another one beats in both.

    Of options equal in both the one in the lower column stays, so the result does not depend on chance.
    """
    n, k = errors.shape
    order = np.lexsort((errors, nbytes), axis=-1)
    e = np.take_along_axis(errors, order, axis=1)
    w = np.take_along_axis(nbytes, order, axis=1)
    best_before = np.full((n, k), np.inf)
    np.minimum.accumulate(e[:, :-1], axis=1, out=best_before[:, 1:])
    keep = e < best_before
    # a stable sort of (not keep) moves the kept options to the front in their order
    front = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, front, axis=1)
    width = int(kept.sum(axis=1).max())
    front = front[:, :width]
    kept = kept[:, :width]
    e = np.where(kept, np.take_along_axis(e, front, axis=1), np.inf)
    w = np.where(kept, np.take_along_axis(w, front, axis=1), 0)
    # padding repeats the last kept option's bytes so that differences never overflow
    w = np.maximum.accumulate(w, axis=1)
    return SortedTable(e, w, np.take_along_axis(order, front, axis=1))


@dataclass(frozen=True, eq=False, slots=True)
class Relaxation:
    """Multiplier of the relaxation and a feasible choice near it (positions in the sorted table)."""

    #: slope of the segment that no longer fits; 0 where the budget binds nothing
    multiplier: float
    binding: bool
    position: NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Segments:
    """Segments of the lower convex hulls of all rows, one array entry each, in order within a row."""

    #: error saved per byte, > 0
    slope: NDArray[np.float64]
    row: NDArray[np.int64]
    #: bytes that the segment adds
    step: NDArray[np.int64]
    #: position in the sorted table at the segment's end
    end: NDArray[np.int64]


def hull_segments(table: SortedTable) -> Segments:
    """Walk all hulls at once, from the smallest option, always to the steepest later one."""
    n, k = table.errors.shape
    rows = np.arange(n)
    at = np.zeros(n, dtype=np.int64)
    columns = np.arange(k)
    slopes, owners, steps, ends = [], [], [], []
    while True:
        here_e = table.errors[rows, at]
        here_w = table.nbytes[rows, at]
        ahead = (columns[None, :] > at[:, None]) & np.isfinite(table.errors)
        active = ahead.any(axis=1)
        if not active.any():
            break
        gain = np.where(ahead, here_e[:, None] - table.errors, -np.inf)
        cost = np.where(ahead, table.nbytes - here_w[:, None], 1)
        slope = gain / cost
        # of equally steep ends the farthest, to have few segments
        target = k - 1 - np.argmax(slope[:, ::-1], axis=1)
        target = np.where(active, target, at)
        idx = rows[active]
        slopes.append(slope[idx, target[idx]])
        owners.append(idx)
        steps.append(cost[idx, target[idx]])
        ends.append(target[idx])
        at = target
    if not slopes:
        empty = np.zeros(0, dtype=np.int64)
        return Segments(np.zeros(0), empty, empty, empty)
    return Segments(np.concatenate(slopes), np.concatenate(owners), np.concatenate(steps), np.concatenate(ends))


def _improve(table: SortedTable, position: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """Change one row at a time, best gain first, while it fits the room that is left (bytes; may start negative)."""
    rows = np.arange(len(position))
    position = position.copy()
    for _ in range(_IMPROVEMENT_ROUNDS):
        gain = table.errors[rows, position][:, None] - table.errors
        cost = table.nbytes - table.nbytes[rows, position][:, None]
        fits = cost <= room
        if room >= 0:
            fits &= gain > 0
        best = np.where(fits, gain, -np.inf)
        flat = int(np.argmax(best))
        if not np.isfinite(best.flat[flat]):
            break
        i, j = divmod(flat, table.errors.shape[1])
        room -= int(cost[i, j])
        position[i] = j
    return position


def _improve_in_pairs(
    table: SortedTable, position: NDArray[np.int64], room: int, multiplier: float
) -> NDArray[np.int64]:
    """Change two rows at a time, best gain first, while both fit the room that is left (bytes).

    Only the moves of least reduced cost at λ are looked at: a cheaper choice near the bound is made of these.
    """
    rows = np.arange(len(position))
    position = position.copy()
    for _ in range(_PAIR_ROUNDS):
        gain = table.errors[rows, position][:, None] - table.errors
        cost = table.nbytes - table.nbytes[rows, position][:, None]
        reduced = np.where(np.isfinite(gain) & (cost != 0), multiplier * cost - gain, np.inf).ravel()
        moves = np.argpartition(reduced, min(_PAIR_MOVES, reduced.size) - 1)[:_PAIR_MOVES]
        moves = moves[np.isfinite(reduced[moves])]
        if not len(moves):
            break
        moves = moves[np.argsort(cost.ravel()[moves], kind="stable")]
        move_cost, move_gain, move_row = cost.ravel()[moves], gain.ravel()[moves], moves // table.errors.shape[1]
        # for each move the partner of most gain among those that still fit beside it
        rising = np.maximum.accumulate(move_gain)
        partner_of = np.maximum.accumulate(np.where(move_gain == rising, np.arange(len(moves)), 0))
        last = np.searchsorted(move_cost, room - move_cost, side="right") - 1
        partner = partner_of[np.maximum(last, 0)]
        total = np.where((last >= 0) & (move_row[partner] != move_row), move_gain + move_gain[partner], -np.inf)
        first = int(np.argmax(total))
        if total[first] <= 0:
            break
        for move in (moves[first], moves[partner[first]]):
            i, j = divmod(int(move), table.errors.shape[1])
            room -= int(cost[i, j])
            position[i] = j
    return position


def _value(table: SortedTable, position: NDArray[np.int64]) -> tuple[float, int]:
    rows = np.arange(len(position))
    return math.fsum(table.errors[rows, position]), int(table.nbytes[rows, position].sum())


def relaxed_multiplier(table: SortedTable, budget: int) -> float:
    """λ of the relaxation alone: what ``relax`` returns, without a choice. The smallest options must fit the budget."""
    segments = hull_segments(table)
    order = np.argsort(-segments.slope, kind="stable")
    room = budget - int(table.nbytes[:, 0].sum())
    n_taken = int(np.searchsorted(np.cumsum(segments.step[order]), room, side="right"))
    return 0.0 if n_taken == len(order) else float(segments.slope[order[n_taken]])


def relax(table: SortedTable, budget: int) -> Relaxation:
    """Solve the relaxation and round it to a feasible choice. The smallest options must fit the budget."""
    n = len(table.errors)
    segments = hull_segments(table)
    slope, row, step, end = segments.slope, segments.row, segments.step, segments.end
    position = np.zeros(n, dtype=np.int64)
    room = budget - int(table.nbytes[:, 0].sum())
    order = np.argsort(-slope, kind="stable")
    used = np.cumsum(step[order])
    n_taken = int(np.searchsorted(used, room, side="right"))
    taken = order[:n_taken]
    # positions rise along a row's hull, so the last one taken is the largest
    np.maximum.at(position, row[taken], end[taken])
    if n_taken == len(order):
        return Relaxation(0.0, False, position)
    room -= int(used[n_taken - 1]) if n_taken else 0
    candidates = [_improve(table, position, room)]
    split = order[n_taken]
    over = position.copy()
    over[row[split]] = end[split]
    candidates.append(_improve(table, over, room - int(step[split])))
    feasible = [p for p in candidates if _value(table, p)[1] <= budget]
    pairs = [_improve_in_pairs(table, p, budget - _value(table, p)[1], float(slope[split])) for p in feasible]
    best = min(pairs, key=lambda p: _value(table, p)[0])
    return Relaxation(float(slope[split]), True, best)
