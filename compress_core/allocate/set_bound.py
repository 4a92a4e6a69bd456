"""SetBound: a lower bound for every allocation with at most m distinct configs, from prices anyone can check.

With prices u of rows and λ of bytes, relaxing "each row takes one column" and "Σ bytes ≤ B" leaves a choice of m
columns by their totals ρ_j = Σ_i min(0, e_ij + λ·w_ij − u_i) (the Lagrangian dual of the p-median problem; Cornuéjols,
Fisher, Nemhauser 1977). Rows that must agree on b_q have a price for each b_q: the component takes its cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Prices:
    """Multipliers: λ ≥ 0 in error units per byte and u (C, L) in error units."""

    multiplier: float
    rows: Float


@dataclass(frozen=True, eq=False, slots=True)
class SetBound:
    """What the prices prove, and where they are cheapest to raise."""

    value: float
    #: (k,) ρ ≤ 0
    totals: Float
    #: the columns that the relaxation opens
    picked: Int
    slope_multiplier: float
    #: (C, L)
    slope_rows: Float


@dataclass(frozen=True, eq=False)
class SetTable:
    """The table of the dual: errors, bytes above each class's least, and who must agree with whom."""

    #: (C, k), inf where not available
    errors: Float
    #: (C, k) bytes above the class's smallest
    extra: Int
    #: budget less the smallest bytes of all classes; None: no budget
    room: int | None
    #: (C,) the component of each class, 0 … R − 1
    component: Int
    #: (C, k) which of the class's prices a column meets: 0 where its component has one class, else the index of b_q
    label: Int
    #: (R, L) labels that every class of the component can take
    valid: Bool

    @classmethod
    def build(cls, errors: Float, nbytes: Int, budget: int | None, component: Int, b_q: Int) -> SetTable:
        finite = np.isfinite(errors)
        smallest = np.where(finite, nbytes, np.iinfo(np.int64).max).min(axis=1)
        sizes = np.bincount(component)
        alone = sizes[component] == 1
        values, index = np.unique(b_q, return_inverse=True)
        n_labels = len(values) if sizes.max() > 1 else 1
        label = np.zeros(errors.shape, dtype=np.int64) if n_labels == 1 else np.where(alone[:, None], 0, index)
        can = np.zeros((len(errors), n_labels), dtype=bool)
        for at in range(n_labels):
            can[:, at] = (finite & (label == at)).any(axis=1)
        valid = np.ones((len(sizes), n_labels), dtype=bool)
        np.logical_and.at(valid, component, can)
        return cls(
            errors,
            np.where(finite, nbytes - smallest[:, None], 0),
            None if budget is None else budget - int(smallest.sum()),
            component,
            label,
            valid,
        )

    @property
    def n_labels(self) -> int:
        return self.valid.shape[1]

    def cost(self, multiplier: float) -> Float:
        """(C, k) errors plus what the bytes cost at λ."""
        return self.errors + multiplier * self.extra

    def by_component(self, values: Float) -> Float:
        """(R, …) sums of (C, …) over the classes of each component."""
        if len(self.valid) == len(values):
            out = np.empty_like(values)
            out[self.component] = values
            return out
        sums = np.zeros((len(self.valid), *values.shape[1:]))
        np.add.at(sums, self.component, values)
        return sums

    def least(self, cost: Float, columns: Int) -> Float:
        """(C, L) the least cost of each class under each label, of the columns given; inf where there is none."""
        offered, label = cost[:, columns], self.label[:, columns]
        out = np.empty((len(cost), self.n_labels))
        for at in range(self.n_labels):
            out[:, at] = np.where(label == at, offered, np.inf).min(axis=1, initial=np.inf)
        return out

    def choose(self, cost: Float, columns: Int) -> Int:
        """(C,) the cheapest of the columns given for each class; the classes of a component keep to one label."""
        offered, label = cost[:, columns], self.label[:, columns]
        if self.n_labels == 1:
            return columns[offered.argmin(axis=1)]
        sums = np.where(self.valid, self.by_component(self.least(cost, columns)), np.inf)
        wanted = sums.argmin(axis=1)[self.component]
        return columns[np.where(label == wanted[:, None], offered, np.inf).argmin(axis=1)]

    def bound(self, prices: Prices, included: Bool, free: Bool, m: int) -> SetBound:
        """The bound for column sets that hold ``included`` and otherwise only ``free``, m in all."""
        priced = np.take_along_axis(prices.rows, self.label, axis=1) if self.n_labels > 1 else prices.rows
        below = np.minimum(self.cost(prices.multiplier) - priced, 0.0)
        totals = below.sum(axis=0)
        candidates = np.flatnonzero(free)
        room_left = max(m - int(included.sum()), 0)
        order = candidates[np.argsort(totals[candidates], kind="stable")][:room_left]
        picked = np.concatenate([np.flatnonzero(included), order])
        sums = np.where(self.valid, self.by_component(prices.rows), np.inf)
        cheapest = sums.argmin(axis=1)
        value = float(sums[np.arange(len(sums)), cheapest].sum() + totals[picked].sum())
        taken = below[:, picked] < 0
        slope = 0.0
        if self.room is not None:
            value -= prices.multiplier * self.room
            slope = float(self.extra[:, picked][taken].sum() - self.room)
        rows: Float = np.zeros_like(prices.rows)
        rows[np.arange(len(rows)), cheapest[self.component]] = 1.0
        for at in range(self.n_labels):
            rows[:, at] -= (taken & (self.label[:, picked] == at)).sum(axis=1)
        return SetBound(value, totals, picked, slope, rows)
