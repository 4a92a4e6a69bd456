"""The best choice that differs from a given one: how much better the optimum is than anything else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.core import enumerate_core
from compress_core.allocate.relaxation import sort_and_drop_dominated
from compress_core.allocate.scaled import ScaledCore, scale_core
from compress_core.allocate.solver import WORK_LIMIT, check_table


@dataclass(frozen=True, eq=False, slots=True)
class SecondBest:
    """The best choice within the budget with another error or other bytes in at least one row."""

    choice: NDArray[np.int64]
    objective: float
    total_bytes: int
    #: no other choice that differs is better by more than ``tolerance``
    proven: bool
    tolerance: float


def second_best(
    errors: ArrayLike,
    nbytes: ArrayLike,
    budget: int,
    first: NDArray[np.int64],
    multiplier: float,
    *,
    work_limit: int = WORK_LIMIT,
) -> SecondBest | None:
    """Least objective among the choices within the budget that differ from ``first``; None where there is none.

    An option equal to the first's in error and bytes does not count as another. A dominated option can only be in the
    second best where it is the only change, so changes of one row are tried on the whole table and the rest on the
    undominated one.

    Args:
        first: (n,) the columns of the choice to avoid; within the budget.
        multiplier: λ ≥ 0 that bounds well: the first solution's.
    """
    e, w = check_table(errors, nbytes)
    rows = np.arange(len(e))
    e_first, w_first = e[rows, first], w[rows, first]
    room = budget - int(w_first.sum())
    other = np.isfinite(e) & ~((e == e_first[:, None]) & (w == w_first[:, None]))
    # if any other choice fits, one of those with a single change does: rows that take more bytes fit alone, too
    single = np.where(other & (w - w_first[:, None] <= room), e - e_first[:, None], np.inf)
    flat = int(np.argmin(single))
    if not np.isfinite(single.flat[flat]):
        return None
    choice = first.copy()
    choice[flat // e.shape[1]] = flat % e.shape[1]

    table = sort_and_drop_dominated(e, np.where(np.isfinite(e), w, np.iinfo(np.int64).max))
    core = scale_core(table, budget, multiplier, e[rows, choice])
    if core is None or core.excess <= 0:
        return _answer(e, w, choice, proven=True, tolerance=0.0 if core is None else core.tolerance)
    same = (table.errors == e_first[:, None]) & (table.nbytes == w_first[:, None])
    result = enumerate_core(
        core.classes,
        room=core.room,
        multiplier=core.multiplier,
        excess=core.excess,
        work_limit=work_limit,
        avoid=_options_of(core, same),
    )
    if result.options is not None:
        choice = table.column[rows, core.position(result)]
    return _answer(e, w, choice, proven=result.exhausted, tolerance=core.tolerance)


def _options_of(core: ScaledCore, same: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The first choice as options of the core's classes, −1 where a class lacks it; None where a fixed row lacks it, so
    that every choice of the core differs."""
    open_rows = np.zeros(len(same), dtype=bool)
    options = np.full(len(core.classes), -1, dtype=np.int64)
    for index, core_class in enumerate(core.classes):
        open_rows[core_class.row] = True
        hit = np.flatnonzero(same[core_class.row, core_class.position])
        if len(hit):
            options[index] = hit[0]
    fixed = np.flatnonzero(~open_rows)
    return options if same[fixed, core.base[fixed]].all() else None


def _answer(
    e: NDArray[np.float64], w: NDArray[np.int64], choice: NDArray[np.int64], *, proven: bool, tolerance: float
) -> SecondBest:
    rows = np.arange(len(e))
    return SecondBest(choice, math.fsum(e[rows, choice]), int(w[rows, choice].sum()), proven, tolerance)
