"""ScaledCore: errors scaled to int64, options fixed by their reduced costs, and the rows that stay open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.core import CoreClass, CoreResult
from compress_core.allocate.relaxation import SortedTable

#: bits for sums of scaled errors; leaves room for λ·w of the same size and for differences
_SUM_BITS = 59


@dataclass(frozen=True, eq=False, slots=True)
class ScaledCore:
    """What ``enumerate_core`` needs to find every choice cheaper than an incumbent."""

    classes: list[CoreClass]
    #: (n,) position of each row's option of reduced cost 0
    base: NDArray[np.int64]
    room: int
    multiplier: int
    #: what the incumbent costs above the bound; 0 or less: nothing can be cheaper
    excess: int
    #: error that one unit of the scaled table stands for
    unit: float

    @property
    def tolerance(self) -> float:
        """What the rounding of the errors can hide in a sum."""
        return len(self.base) * self.unit

    def position(self, result: CoreResult) -> NDArray[np.int64]:
        """(n,) positions of the choice that the enumeration found."""
        assert result.options is not None
        position = self.base.copy()
        for core_class, option in zip(self.classes, result.options, strict=True):
            position[core_class.row] = core_class.position[option]
        return position


def scale_core(
    table: SortedTable, budget: int, multiplier: float, incumbent_errors: NDArray[np.float64]
) -> ScaledCore | None:
    """Scale a table by its incumbent and drop what cannot beat it; None where the incumbent has every least error.

    Args:
        multiplier: λ ≥ 0 of the relaxation.
        incumbent_errors: (n,) the error that the incumbent has in each row.
    """
    n = len(table.errors)
    finite = np.isfinite(table.errors)
    least = np.where(finite, table.errors, np.inf).min(axis=1)
    # error above the row's least one: all that a choice can still save
    above = table.errors - least[:, None]
    incumbent = incumbent_errors - least
    total = math.fsum(incumbent)
    if total <= 0:
        return None
    # an option that alone exceeds the incumbent's total is in no better choice
    open_ = above <= total
    bits = _SUM_BITS - math.ceil(math.log2(n + 2))
    scaled = np.rint(np.where(open_, above, 0.0) / total * 2.0**bits).astype(np.int64)

    lightest = np.where(open_, table.nbytes, np.iinfo(np.int64).max).min(axis=1)
    room = budget - int(lightest.sum())
    extra = table.nbytes - lightest[:, None]
    open_ &= extra <= room
    extra = np.where(open_, extra, 0)
    # any λ ≥ 0 gives a valid bound; the cap keeps λ·w within int64 (it never binds at the relaxation's own λ)
    price = min(round(multiplier / total * 2.0**bits), 2 ** (_SUM_BITS + 1) // max(room, 1))
    priced = np.where(open_, scaled + price * extra, np.iinfo(np.int64).max)
    floor = priced.min(axis=1)
    bound = int(floor.sum()) - price * room
    excess = int(np.rint(incumbent / total * 2.0**bits).astype(np.int64).sum()) - bound
    reduced = np.where(open_, priced - floor[:, None], np.iinfo(np.int64).max)
    order = np.argsort(reduced, axis=1, kind="stable")
    base = order[:, 0]
    counts = (reduced < excess).sum(axis=1)
    classes = []
    for row in np.flatnonzero(counts > 1):
        options = order[row, : counts[row]]
        classes.append(
            CoreClass(int(row), options, reduced[row, options], extra[row, options] - extra[row, options[0]])
        )
    classes.sort(key=lambda c: (int(c.reduced[1]), c.row))
    left = room - int(extra[np.arange(n), base].sum())
    return ScaledCore(classes, base, left, price, excess, total / 2.0**bits)
