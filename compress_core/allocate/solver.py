"""solve_allocation: the exact multiple-choice knapsack, to the byte, with its certificate.

min Σ_i e_{i, c_i}  subject to  Σ_i w_{i, c_i} ≤ B, one option c_i per row. NP-hard in general, but with many rows and
few options the Lagrangian bound settles nearly all of them (Pisinger 1995). Steps: drop dominated options; solve
the linear relaxation over convex hulls for λ and a first incumbent; fix every option whose reduced cost exceeds the
gap between incumbent and bound; enumerate what is left (``core``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress_core.allocate.certificate import lagrangian_bound
from compress_core.allocate.core import enumerate_core
from compress_core.allocate.relaxation import Relaxation, SortedTable, relax, sort_and_drop_dominated
from compress_core.allocate.scaled import scale_core
from compress_core.allocate.solution import AllocationSolution
from compress_core.errors import ConfigError, InfeasibleBudget, NonFiniteValues

#: states (not seconds, so that the answer does not depend on the machine) after which the enumeration gives up
WORK_LIMIT = 4_000_000
_MAX_BYTES = 2**53
#: beyond it differences and slopes of errors could overflow
_MAX_ERROR = 1e150
#: what rounding may do to a bound, relative to the largest parts of its sum
_ROUNDING = 1e-12


def check_table(errors: ArrayLike, nbytes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The table as float64 and int64, with 0 bytes where an option is not available.

    Raises:
        ConfigError: shapes, types or values that make no table.
        NonFiniteValues: an error is NaN or −inf.
    """
    e = np.asarray(errors, dtype=np.float64)
    w = np.asarray(nbytes)
    if e.ndim != 2 or e.shape != w.shape or not e.size:
        raise ConfigError(
            f"errors and nbytes must be tables of one shape (matrices, options), not {e.shape} and {w.shape}"
        )
    if w.dtype.kind not in "iu":
        raise ConfigError(f"nbytes must be integers, not {w.dtype}: bytes come from the serialiser, never from a rate")
    bad = np.isnan(e) | np.isneginf(e)
    if bad.any():
        i, j = (int(x) for x in np.argwhere(bad)[0])
        raise NonFiniteValues(f"the error of matrix {i}, option {j} is {e[i, j]}: mark what is not available with +inf")
    if np.abs(e[np.isfinite(e)]).max(initial=0.0) > _MAX_ERROR:
        raise ConfigError(f"an error exceeds {_MAX_ERROR:g}: mark what is not available with +inf")
    w = w.astype(np.int64)
    available = np.isfinite(e)
    empty = np.flatnonzero(~available.any(axis=1))
    if len(empty):
        raise ConfigError(f"matrix {int(empty[0])} has no available option: measure or fit at least one config of it")
    used = w[available]
    if used.min() < 0:
        raise ConfigError("nbytes must be 0 or more")
    if int(used.max()) * len(e) > _MAX_BYTES:
        raise ConfigError(f"bytes beyond {_MAX_BYTES} in all are not supported")
    return e, np.where(available, w, 0)


def _available_smallest(e: NDArray[np.float64], w: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(np.isfinite(e), w, np.iinfo(np.int64).max).min(axis=1)


def solve_allocation(
    errors: ArrayLike, nbytes: ArrayLike, budget: int, *, work_limit: int = WORK_LIMIT
) -> AllocationSolution:
    """Choose one option per row: least total error at no more than ``budget`` bytes, exact to the byte.

    Args:
        errors: (n, k) float64, in any one unit (nats of KL, say); +inf marks an option that is not available.
        nbytes: (n, k) integers, bytes of each option; entries of unavailable options do not matter.
        budget: bytes for all rows together.
        work_limit: states that the enumeration may make. Beyond it the best choice found comes back with
            ``optimal = False``, its bound and its gap.

    The search runs on errors scaled to int64, so ``optimal`` is literal on that table; in the units of ``errors`` it
    means: no feasible choice is better by more than ``tolerance`` (about 1e-12 of the objective above its minimum).

    Raises:
        InfeasibleBudget: even the smallest options exceed the budget (``smallest_bytes`` says what would do).
        ConfigError: shapes, types or bytes that make no table; a row without an available option.
        NonFiniteValues: an error is NaN or −inf.
    """
    e, w = check_table(errors, nbytes)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer):
        raise ConfigError(f"the budget must be a whole number of bytes, not {budget!r}")
    budget = int(budget)
    available = np.isfinite(e)
    smallest = int(_available_smallest(e, w).sum())
    if smallest > budget:
        raise InfeasibleBudget(
            f"the budget of {budget:,} bytes is below the smallest possible allocation of {smallest:,} bytes: "
            f"raise the budget by {smallest - budget:,} bytes or offer smaller configs",
            smallest_bytes=smallest,
        )
    table = sort_and_drop_dominated(e, np.where(available, w, np.iinfo(np.int64).max))
    relaxation = relax(table, budget)
    if not relaxation.binding:
        return _solution(e, w, budget, table, relaxation.position, 0.0, optimal=True, proof="slack budget")
    return _close_gap(e, w, budget, table, relaxation, work_limit)


def _solution(
    e: NDArray[np.float64],
    w: NDArray[np.int64],
    budget: int,
    table: SortedTable,
    position: NDArray[np.int64],
    multiplier: float,
    *,
    optimal: bool,
    proof: str,
    tolerance: float = 0.0,
    core_size: int = 0,
    peak_states: int = 0,
    total_states: int = 0,
) -> AllocationSolution:
    rows = np.arange(len(e))
    choice = table.column[rows, position]
    objective = math.fsum(e[rows, choice])
    total = int(w[rows, choice].sum())
    if total > budget:  # a broken invariant must never leave as an answer
        raise AssertionError(f"allocation of {total} bytes exceeds its budget of {budget}")
    bound = min(lagrangian_bound(e, w, budget, multiplier), objective)
    if proof == "bound met" and objective - bound > tolerance + _ROUNDING * (abs(objective) + multiplier * budget):
        proof = "core exhausted"  # λ's bound alone does not meet it: options that fit no room were left out first
    return AllocationSolution(
        choice=choice,
        total_bytes=total,
        budget=budget,
        objective=objective,
        lower_bound=bound,
        gap=objective - bound,
        optimal=optimal,
        proof=proof,
        multiplier=multiplier,
        tolerance=tolerance,
        core_size=core_size,
        peak_states=peak_states,
        total_states=total_states,
    )


def _close_gap(
    e: NDArray[np.float64],
    w: NDArray[np.int64],
    budget: int,
    table: SortedTable,
    relaxation: Relaxation,
    work_limit: int,
) -> AllocationSolution:
    position = relaxation.position
    incumbent = table.errors[np.arange(len(e)), position]
    core = scale_core(table, budget, relaxation.multiplier, incumbent)
    if core is None or core.excess <= 0:
        tolerance = 0.0 if core is None else core.tolerance
        return _solution(
            e, w, budget, table, position, relaxation.multiplier, optimal=True, proof="bound met", tolerance=tolerance
        )
    result = enumerate_core(
        core.classes, room=core.room, multiplier=core.multiplier, excess=core.excess, work_limit=work_limit
    )
    if result.options is not None:
        position = core.position(result)
    return _solution(
        e,
        w,
        budget,
        table,
        position,
        relaxation.multiplier,
        optimal=result.exhausted,
        proof="core exhausted" if result.exhausted else "work limit reached",
        tolerance=core.tolerance,
        core_size=len(core.classes),
        peak_states=result.peak_states,
        total_states=result.total_states,
    )
