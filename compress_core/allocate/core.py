"""Enumeration of the core: the rows whose option the Lagrangian bound leaves open (Pisinger 1995, MCKNAP).

All in int64, so that sums, ties and comparisons are exact. With a multiplier λ each option has a reduced cost
r = E + λ·w − min(E + λ·w) ≥ 0 within its row. A choice of weight W costs Σ r + λ·(R − W) above the bound, R being the
budget. Only choices strictly cheaper than the incumbent's excess G are of interest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class CoreClass:
    """An open row: its options by rising reduced cost; option 0 has none."""

    row: int
    #: position of each option in the sorted table
    position: IntArray
    #: reduced cost r, rising from 0
    reduced: IntArray
    #: weight above the weight of option 0, of either sign
    shift: IntArray


@dataclass(frozen=True, eq=False, slots=True)
class CoreResult:
    """The outcome: ``excess`` and ``options`` of the best choice found, None where none beats the incumbent."""

    excess: int
    #: option of each class in the order of ``classes``; None: keep the incumbent
    options: IntArray | None
    exhausted: bool
    peak_states: int
    total_states: int


def _suffix_min_rate(classes: list[CoreClass], sign: int) -> NDArray[np.float64]:
    """For each stage the lowest reduced cost per byte gained (sign 1) or lost (−1) among the classes still to come."""
    rate = np.full(len(classes) + 1, np.inf)
    for stage in range(len(classes) - 1, -1, -1):
        shift = sign * classes[stage].shift
        useful = shift > 0
        here = float((classes[stage].reduced[useful] / shift[useful]).min()) if useful.any() else np.inf
        rate[stage] = min(rate[stage + 1], here)
    return rate


def enumerate_core(
    classes: list[CoreClass],
    *,
    room: int,
    multiplier: int,
    excess: int,
    work_limit: int,
    avoid: IntArray | None = None,
) -> CoreResult:
    """List dynamic programme over the core with dominance and bounds.

    With ``avoid`` only choices that differ from it somewhere count. Its prefix is carried beside the list: dominance
    among states that already differ stays safe, because whatever completes them, they differ.

    Args:
        classes: open rows, those with the cheapest second option first.
        room: budget minus the weight of option 0 everywhere; may be negative.
        multiplier: λ ≥ 0 in error units per byte.
        excess: G > 0, what the incumbent costs above the bound.
        work_limit: states made in all before giving up (then ``exhausted`` is false).
        avoid: an option of each class, −1 where the class does not have the one to avoid.
    """
    n_stages = len(classes)
    lightest = np.zeros(n_stages + 1, dtype=np.int64)
    heaviest = np.zeros(n_stages + 1, dtype=np.int64)
    second = np.full(n_stages + 1, np.iinfo(np.int64).max, dtype=np.int64)
    for stage in range(n_stages - 1, -1, -1):
        lightest[stage] = lightest[stage + 1] + classes[stage].shift.min()
        heaviest[stage] = heaviest[stage + 1] + classes[stage].shift.max()
        second[stage] = min(int(second[stage + 1]), int(classes[stage].reduced[1]))
    # the margin keeps float rounding from pruning a state that could still win
    rate_up = np.minimum(_suffix_min_rate(classes, 1), float(multiplier)) * (1 - 1e-9)
    rate_down = _suffix_min_rate(classes, -1) * (1 - 1e-9)

    prefix = _Prefix.of(classes, avoid)
    weight = np.zeros(int(avoid is None), dtype=np.int64)
    cost = np.zeros_like(weight)
    parents: list[NDArray[np.int32]] = []
    taken: list[NDArray[np.int16]] = []
    best: tuple[int, int] | None = None  # (stage, state) of the best choice so far
    peak = total = 1
    for stage in range(n_stages + 1):
        # every state completed with option 0 of all classes to come is a choice of its own
        left = room - weight
        fits = left >= 0
        if fits.any():
            final = np.where(fits, cost + multiplier * np.where(fits, left, 0), np.iinfo(np.int64).max)
            state = int(np.argmin(final))
            if final[state] < excess:
                excess, best = int(final[state]), (stage, state)
        if stage == n_stages or (not len(weight) and prefix.ended(stage)) or excess <= 0:
            break
        # those that can still become better by changing a class to come; float only where the bound has slack for it
        alive = cost < excess - second[stage]
        alive &= left >= lightest[stage]
        over = np.maximum(-left, 0)
        under = np.maximum(left, 0)
        with np.errstate(invalid="ignore"):
            alive &= ~(over * rate_down[stage] >= (excess - cost))
        alive &= under * rate_up[stage] < (excess - cost)
        unreachable = np.maximum(left - heaviest[stage], 0)
        alive &= multiplier * unreachable < excess - cost
        index = np.flatnonzero(alive)
        if not len(index) and prefix.ended(stage):
            break
        weight, cost = weight[index], cost[index]
        here = classes[stage]
        leaving = prefix.leaving(stage)
        if total + len(index) * len(here.reduced) + len(leaving) > work_limit:
            return CoreResult(excess, _backtrack(best, n_stages, parents, taken, avoid), False, peak, total)
        all_weight = (weight[None, :] + here.shift[:, None]).ravel()
        all_cost = (cost[None, :] + here.reduced[:, None]).ravel()
        if len(leaving):
            all_weight = np.concatenate([all_weight, prefix.weight[stage] + here.shift[leaving]])
            all_cost = np.concatenate([all_cost, prefix.cost[stage] + here.reduced[leaving]])
        order = np.argsort(all_weight, kind="stable")  # merges sorted runs
        sorted_weight = all_weight[order]
        # E-part of a state: r − λ·w; a lighter state that is no worse in it dominates
        pure = all_cost[order] - multiplier * sorted_weight
        before = np.full_like(pure, np.iinfo(np.int64).max)
        np.minimum.accumulate(pure[:-1], out=before[1:])
        keep = order[(pure < before) & (all_cost[order] < excess)]
        n_listed = len(index) * len(here.reduced)
        if len(leaving):  # states that left the prefix here have no parent
            listed = keep < n_listed
            source, option = np.full(len(keep), -1), np.empty(len(keep), dtype=np.int64)
            option[listed], source[listed] = np.divmod(keep[listed], max(len(index), 1))
            source[listed] = index[source[listed]]
            option[~listed] = leaving[keep[~listed] - n_listed]
        else:
            source, option = index[keep % len(index)], keep // len(index)
        parents.append(source.astype(np.int32))
        taken.append(option.astype(np.int16))
        weight, cost = all_weight[keep], all_cost[keep]
        total += len(weight)
        peak = max(peak, len(weight))
    return CoreResult(excess, _backtrack(best, n_stages, parents, taken, avoid), True, peak, total)


@dataclass(frozen=True, eq=False, slots=True)
class _Prefix:
    """The choice to avoid, cut off before each stage; one that the core does not hold ends where it leaves it."""

    avoid: IntArray | None
    classes: list[CoreClass]
    #: weight and reduced cost of the prefix at each stage
    weight: IntArray
    cost: IntArray

    @classmethod
    def of(cls, classes: list[CoreClass], avoid: IntArray | None) -> _Prefix:
        wanted = np.zeros(0, dtype=np.int64) if avoid is None else avoid
        zero = np.zeros(1, dtype=np.int64)
        shifts = [c.shift[max(int(o), 0)] for c, o in zip(classes, wanted, strict=False)]
        costs = [c.reduced[max(int(o), 0)] for c, o in zip(classes, wanted, strict=False)]
        weight = np.concatenate([zero, np.cumsum(np.array(shifts, dtype=np.int64))])
        return cls(avoid, classes, weight, np.concatenate([zero, np.cumsum(np.array(costs, dtype=np.int64))]))

    def ended(self, stage: int) -> bool:
        """Whether no choice leaves the prefix at this stage or later."""
        return self.avoid is None or stage == len(self.classes) or bool((self.avoid[:stage] < 0).any())

    def leaving(self, stage: int) -> IntArray:
        """The options with which a choice differs from the prefix at this stage for the first time."""
        if self.avoid is None or self.ended(stage):
            return np.zeros(0, dtype=np.int64)
        options = np.arange(len(self.classes[stage].reduced))
        return options[options != self.avoid[stage]]


def _backtrack(
    best: tuple[int, int] | None,
    n_stages: int,
    parents: list[NDArray[np.int32]],
    taken: list[NDArray[np.int16]],
    avoid: IntArray | None,
) -> IntArray | None:
    if best is None:
        return None
    stage, state = best
    options = np.zeros(n_stages, dtype=np.int64)
    while stage:
        stage -= 1
        options[stage] = taken[stage][state]
        state = int(parents[stage][state])
        if state < 0:  # it left the prefix here
            assert avoid is not None
            options[:stage] = avoid[:stage]
            break
    return options
