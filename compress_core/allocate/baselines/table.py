"""The table that every baseline starts from: checked as the exact solver checks it, refused for the same reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.solver import check_table
from compress_core.errors import ConfigError, InfeasibleBudget

#: bytes of an option that is not available: no sum of others reaches it
NO_BYTES = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False, slots=True)
class BudgetTable:
    """A table that has at least one choice within its budget."""

    #: (n, k), inf where not available
    errors: NDArray[np.float64]
    #: (n, k) int64, ``NO_BYTES`` where not available
    nbytes: NDArray[np.int64]
    #: (n,) column of each row's smallest option, of equal ones that of least error
    smallest: NDArray[np.int64]
    #: bytes that the budget leaves above the smallest options, ≥ 0
    room: int

    @property
    def smallest_bytes(self) -> NDArray[np.int64]:
        """(n,) bytes of each row's smallest option."""
        return self.nbytes[np.arange(len(self.nbytes)), self.smallest]


def budget_table(errors: ArrayLike, nbytes: ArrayLike, budget: int) -> BudgetTable:
    """Check and prepare (n, k) errors and bytes.

    Raises:
        InfeasibleBudget: even the smallest options exceed the budget.
        ConfigError: shapes, types or bytes that make no table; a row without an available option.
        NonFiniteValues: an error is NaN or −inf.
    """
    e, w = check_table(errors, nbytes)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer):
        raise ConfigError(f"the budget must be a whole number of bytes, not {budget!r}")
    w = np.where(np.isfinite(e), w, NO_BYTES)
    smallest = np.lexsort((e, w), axis=-1)[:, 0]
    total = int(w[np.arange(len(w)), smallest].sum())
    room = int(budget) - total
    if room < 0:
        raise InfeasibleBudget(
            f"the budget of {int(budget):,} bytes is below the smallest possible allocation of {total:,} bytes: "
            f"raise the budget by {-room:,} bytes or offer smaller configs",
            smallest_bytes=total,
        )
    return BudgetTable(e, w, smallest, room)
