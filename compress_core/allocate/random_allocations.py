"""Random allocations of (nearly) equal bytes: what predicted and realised damage are compared over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.budget import Budget
from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.random_draw import DrawTable, draw_choice, repair_choice
from compress_core.allocate.solver import solve_allocation
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget

Choice = NDArray[np.int64]

#: log-normal noise on the weights of near-optimal allocations, drawn uniformly for each: 20 to 50 %
NEAR_NOISE = (0.2, 0.5)
#: draws for one allocation before the band counts as exhausted
_ATTEMPTS = 60
#: states for the search of the fullest allocation; it ends at once where the budget can be filled
_FULLEST_WORK = 400_000


def random_allocations(
    problem: AllocationProblem,
    budget: Budget | int,
    *,
    count: int,
    seed: int,
    within: float = 0.005,
    near: int = 0,
    fewer: bool = False,
) -> tuple[Allocation, ...]:
    """``count`` distinct allocations whose bytes lie within ``within`` below the budget, never above it.

    The first ``count`` − ``near`` have the kind "random": drawn broadly over everything available, blind to errors and
    weights (``draw_choice`` says how). The last ``near`` have the kind "near_optimal": optima of the problem with its
    weights multiplied by log-normal noise of 20–50 % (more where distinct optima are rare), none of them the optimum
    itself; where such an optimum leaves more than ``within`` of the budget unused, a row or two are moved at the least
    cost. The same seed gives the same allocations, and a larger ``count`` only adds to the random ones.

    Args:
        budget: a ``Budget``, or bytes for the matrices.
        within: share of the budget that may stay unused, above 0 and below 1.
        fewer: where the band does not have ``count`` distinct allocations, return those that were found (at least one)
            instead of refusing: near the largest allocation there are few, at the largest one there is one.

    Raises:
        InfeasibleBudget: even the smallest configs do not fit.
        ConfigError: ``count``, ``near`` or ``within`` make no sense; no allocation, or fewer distinct ones than asked
            for, could be found within the band (the message says which, and what would help).
    """
    _check(count, near, within)
    problem = _without_clamped_twins(problem)
    highest = budget.matrix_bytes(problem) if isinstance(budget, Budget) else int(budget)
    smallest = problem.smallest_bytes
    if smallest is None:
        raise ConfigError("some matrix has no available config: measure or fit at least one of each")
    if smallest > highest:
        raise InfeasibleBudget(
            f"a budget of {highest:,} bytes for the matrices is below the {smallest:,} bytes of the smallest configs: "
            f"allow at least {smallest:,} bytes, or offer smaller configs",
            smallest_bytes=smallest,
        )
    lowest = highest - int(within * highest)
    _check_band(problem, lowest, highest, within)
    seen: set[bytes] = set()
    table = _draw_table(problem)
    broad = _distinct(_broad_draw(table, lowest, highest, seed), count - near, seen)
    if near:
        optimum = solve_allocation(problem.objective_table, problem.nbytes, highest).choice
        seen.add(optimum.tobytes())
    close = _distinct(_near_draw(problem, table, lowest, highest, seed), near, seen)
    if len(broad) + len(close) < (1 if fewer else count):
        raise ConfigError(
            f"only {len(broad)} of {count - near} random and {len(close)} of {near} near-optimal distinct allocations "
            f"were found between {lowest:,} and {highest:,} bytes: ask for fewer, or raise within above {within:g}"
        )
    return tuple(
        allocation_from_choice(problem, choice, kind=kind, budget_bytes=highest)
        for kind, choices in (("random", broad), ("near_optimal", close))
        for choice in choices
    )


def _check(count: int, near: int, within: float) -> None:
    if count < 1:
        raise ConfigError(f"ask for at least one random allocation, not {count}")
    if not 0 <= near <= count:
        raise ConfigError(f"near = {near} of {count} allocations: give a number from 0 to {count}")
    if not 0 < within < 1:
        raise ConfigError(f"within = {within:g}: give the share of the budget that may stay unused, above 0, below 1")


def _without_clamped_twins(problem: AllocationProblem) -> AllocationProblem:
    """Two ranks that a small matrix clamps to the same one are one config of it: only the first column stays."""
    errors = problem.errors.copy()
    for i in range(len(problem.specs)):
        seen: set[CompressionConfig] = set()
        for j in np.flatnonzero(np.isfinite(errors[i])):
            config = problem.config_of(i, int(j))
            if config in seen:
                errors[i, j] = np.inf
            seen.add(config)
    return replace(problem, errors=errors)


def _check_band(problem: AllocationProblem, lowest: int, highest: int, within: float) -> None:
    """Refuse a band that is proven empty; where the proof is too long the draws decide."""
    available = np.isfinite(problem.errors)
    # the fullest allocation: the one of most bytes within the budget
    bytes_saved = np.where(available, -problem.nbytes.astype(np.float64), np.inf)
    fullest = solve_allocation(bytes_saved, problem.nbytes, highest, work_limit=_FULLEST_WORK)
    if fullest.total_bytes < lowest and fullest.optimal:
        raise ConfigError(
            f"no allocation takes between {lowest:,} and {highest:,} bytes: the largest within the budget takes "
            f"{fullest.total_bytes:,}. Use that as the budget, or raise within above {within:g}"
        )


def _distinct(draw: Callable[[int, int], Choice | None], count: int, seen: set[bytes]) -> list[Choice]:
    """``count`` choices that are not in ``seen``, fewer where one of them could not be found; adds them to ``seen``."""
    found: list[Choice] = []
    for index in range(count):
        for attempt in range(_ATTEMPTS):
            choice = draw(index, attempt)
            if choice is not None and choice.tobytes() not in seen:
                seen.add(choice.tobytes())
                found.append(choice)
                break
        else:
            return found
    return found


def _draw_table(problem: AllocationProblem) -> DrawTable:
    projections = {name: i for i, name in enumerate(sorted({s.key.projection for s in problem.specs}))}
    return DrawTable(
        nbytes=problem.nbytes,
        available=np.isfinite(problem.errors),
        layers=np.array([s.key.layer_idx for s in problem.specs]),
        projections=np.array([projections[s.key.projection] for s in problem.specs]),
    )


def _broad_draw(table: DrawTable, lowest: int, highest: int, seed: int) -> Callable[[int, int], Choice | None]:
    def draw(index: int, attempt: int) -> Choice | None:
        return draw_choice(table, lowest, highest, np.random.default_rng([seed, 0, index, attempt]))

    return draw


def _near_draw(
    problem: AllocationProblem, table: DrawTable, lowest: int, highest: int, seed: int
) -> Callable[[int, int], Choice | None]:
    def draw(index: int, attempt: int) -> Choice | None:
        rng = np.random.default_rng([seed, 1, index, attempt])
        # where few matrices are open, most noise leads to the same optima
        spread = rng.uniform(*NEAR_NOISE) * (1 + 2 * attempt / _ATTEMPTS)
        noise = np.exp(spread * rng.normal(size=len(problem.specs)))
        weights = problem.weights.reshape(len(problem.specs), -1) * noise[:, None]
        noised = replace(problem, weights=weights.reshape(problem.weights.shape)).objective_table
        choice = solve_allocation(noised, problem.nbytes, highest).choice
        # with few matrices an optimum may leave more unused than the band allows
        return repair_choice(table, -noised, choice, lowest, highest, rng)

    return draw
