"""At most m distinct configs, exactly: branch and bound over sets of columns.

A node says which columns are in and which are out. Its bound comes from prices raised by subgradient steps (Held,
Wolfe, Crowder 1974) and also settles columns without branching; a set that is complete is solved exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from compress_core.allocate.set_bound import Bool, Prices, SetBound, SetTable
from compress_core.allocate.set_start import free_prices, starting_prices, starting_sets

#: nodes after which the search gives up: not seconds, so that the answer does not depend on the machine
NODE_LIMIT = 4_000
_ROOT_STEPS = 250
_CHILD_STEPS = 25
#: steps without a better bound after which the step length is halved
_PATIENCE = 8
_SHORTEST = 1 / 32
#: relative gap below which the root's bound is not begun again from other prices
_CLOSE = 1e-3
#: relative rise of the bound that is aimed at while no choice is known
_AIM = 0.05

Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False, slots=True)
class Evaluated(Generic[Answer]):
    """The best choice with the columns of one set."""

    objective: float
    answer: Answer
    #: whether the objective is proven to be the least of this set
    proven: bool


@dataclass(eq=False, slots=True)
class SetSearch(Generic[Answer]):
    """The search and its outcome."""

    table: SetTable
    m: int
    #: the best choice within a set, if its objective can lie below the second argument; None where it cannot
    evaluate: Callable[[tuple[int, ...], float], Evaluated[Answer] | None]
    #: objectives closer than this are the same; it is narrowed to ``relative`` times the first good objective, if given
    tolerance: float
    relative: float | None = None
    node_limit: int = NODE_LIMIT
    best: Evaluated[Answer] | None = None
    #: of the best choice
    columns: tuple[int, ...] = ()
    #: prices of the root, which prove ``lower_bound``
    prices: Prices | None = None
    lower_bound: float = -np.inf
    n_nodes: int = 0
    exhausted: bool = False
    _seen: set[tuple[int, ...]] = field(default_factory=set)
    _all_proven: bool = True

    @property
    def proven(self) -> bool:
        return self.exhausted and self._all_proven

    def offer(self, columns: tuple[int, ...]) -> None:
        """Evaluate a set, once."""
        columns = tuple(sorted(columns))
        if columns in self._seen:
            return
        self._seen.add(columns)
        limit = np.inf if self.best is None else self.best.objective
        found = self.evaluate(columns, limit)
        if found is None:
            return
        self._all_proven &= found.proven
        if found.objective < limit:
            self.best, self.columns = found, columns

    def run(self) -> None:
        """Search until every set is settled or the node limit is reached; without any choice ``best`` stays None."""
        k = self.table.errors.shape[1]
        nothing: Bool = np.zeros(k, dtype=bool)
        everything: Bool = np.asarray(np.isfinite(self.table.errors).any(axis=0))
        for columns in starting_sets(self.table, self.m):
            self.offer(columns)
        if self.best is not None and self.relative is not None:
            self.tolerance = min(self.tolerance, self.relative * abs(self.best.objective))
        root: tuple[SetBound, Prices] | None = None
        if self.columns:
            root = self._raise(starting_prices(self.table, self.columns), nothing, everything, _ROOT_STEPS)
        if self.best is None or root is None or self._far(root[0].value, self.best.objective):
            # raising the bound may find the first choice of all
            other = self._raise(free_prices(self.table), nothing, everything, _ROOT_STEPS)
            if root is None or other[0].value > root[0].value:
                root = other
        bound, prices = root
        self.lower_bound, self.prices = bound.value, prices
        heap: list[tuple[float, int, Bool, Bool, Prices, SetBound]] = [
            (bound.value, 0, nothing, everything, prices, bound)
        ]
        counter = 0
        while heap:
            value, _, included, free, prices, bound = heapq.heappop(heap)
            if self._settled(value):
                break  # the heap is sorted: all others are settled too
            if self.n_nodes >= self.node_limit:
                return
            included, free = self._fix(bound, included, free)
            n_in = int(included.sum())
            if n_in > self.m:
                continue
            if n_in == self.m or n_in + int(free.sum()) <= self.m:
                whole = included if n_in == self.m else included | free
                self.offer(tuple(int(j) for j in np.flatnonzero(whole)))
                continue
            # the column that the relaxation wants most: excluding it raises the bound, including it fills the set
            candidates = np.flatnonzero(free)
            branch = int(candidates[np.argmin(bound.totals[candidates])])
            for inside in (True, False):
                child_in, child_free = included.copy(), free.copy()
                child_in[branch], child_free[branch] = inside, False
                child, child_prices = self._raise(prices, child_in, child_free, _CHILD_STEPS)
                self.n_nodes += 1
                if not self._settled(max(child.value, value)):
                    counter += 1
                    entry = (max(child.value, value), counter, child_in, child_free, child_prices, child)
                    heapq.heappush(heap, entry)
        self.exhausted = True

    @staticmethod
    def _far(bound: float, objective: float) -> bool:
        return objective - bound > _CLOSE * abs(objective)

    def _settled(self, value: float) -> bool:
        return self.best is not None and value >= self.best.objective - self.tolerance

    def _raise(self, prices: Prices, included: Bool, free: Bool, steps: int) -> tuple[SetBound, Prices]:
        """Raise the bound of a node by subgradient steps; each set that the relaxation opens is offered."""
        table = self.table
        best = bound = table.bound(prices, included, free, self.m)
        best_prices = prices
        # λ moves in units in which it weighs as much as the rows' prices do
        unit = 0.0 if not table.room else float(np.abs(prices.rows).mean()) / table.room * np.sqrt(len(prices.rows))
        length, idle = 1.0, 0
        for _ in range(steps):
            # without a choice to aim at the bound is asked for a little more each time
            aim = best.value + _AIM * abs(best.value) if self.best is None else self.best.objective
            missing = aim - bound.value
            if self._settled(best.value):
                break
            slope = bound.slope_multiplier * unit
            norm = float((bound.slope_rows**2).sum()) + slope**2
            if norm == 0:
                break
            step = length * max(missing, self.tolerance) / norm
            multiplier = max(prices.multiplier + step * slope * unit, 0.0)
            prices = Prices(multiplier, prices.rows + step * bound.slope_rows)
            bound = table.bound(prices, included, free, self.m)
            if bound.value > best.value:
                best, best_prices, idle = bound, prices, 0
                self.offer(tuple(int(j) for j in bound.picked))
            else:
                idle += 1
                if idle >= _PATIENCE:
                    length, idle = length / 2, 0
                    if length < _SHORTEST:
                        break
                    prices, bound = best_prices, best
        return best, best_prices

    def _fix(self, bound: SetBound, included: Bool, free: Bool) -> tuple[Bool, Bool]:
        """Columns that must be in or out because the opposite is already worse than the best choice."""
        left = self.m - int(included.sum())
        candidates = np.flatnonzero(free)
        if self.best is None or left <= 0 or len(candidates) <= left:
            return included, free
        totals = bound.totals[candidates]
        order = np.argsort(totals, kind="stable")
        last_in, first_out = totals[order[left - 1]], totals[order[left]]
        limit = self.best.objective - self.tolerance - bound.value
        picked = np.zeros(len(candidates), dtype=bool)
        picked[order[:left]] = True
        must = picked & (first_out - totals >= limit)
        never = ~picked & (totals - last_in >= limit)
        included, free = included.copy(), free.copy()
        included[candidates[must]] = True
        free[candidates[must | never]] = False
        return included, free
