"""The exact solver against brute force, HiGHS (more of it in test_agreement) and its own certificate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compress_core.allocate import lagrangian_bound, solve_allocation
from compress_core.errors import ConfigError, InfeasibleBudget, NonFiniteValues

_ERRORS = st.one_of(
    st.floats(0, 10, allow_nan=False),
    st.integers(0, 4).map(float),  # ties
    st.floats(-1, 1, allow_nan=False),  # noisy estimates go below zero
    st.just(float("inf")),
    st.sampled_from([1e-300, 5e-324, 1e100, 1e-9]),
)


@st.composite
def small_instances(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    errors = draw(arrays(np.float64, (n, k), elements=_ERRORS))
    errors[:, 0] = np.where(np.isfinite(errors).any(axis=1), errors[:, 0], 1.0)
    top = draw(st.sampled_from([3, 40, 10**6, 10**10]))
    nbytes = draw(arrays(np.int64, (n, k), elements=st.integers(0, top)))
    low = int(np.where(np.isfinite(errors), nbytes, 2**60).min(axis=1).sum())
    high = int(np.where(np.isfinite(errors), nbytes, 0).max(axis=1).sum())
    return errors, nbytes, draw(st.integers(max(low - 2, 0), high + 2))


@settings(max_examples=400, deadline=None)
@given(small_instances())
def test_equals_brute_force(
    solve_by_brute_force: Callable[..., float], instance: tuple[np.ndarray, np.ndarray, int]
) -> None:
    errors, nbytes, budget = instance
    best = solve_by_brute_force(errors, nbytes, budget)
    if np.isinf(best):
        with pytest.raises(InfeasibleBudget):
            solve_allocation(errors, nbytes, budget)
        return
    solution = solve_allocation(errors, nbytes, budget)
    rows = np.arange(len(errors))
    scale = np.abs(errors[np.isfinite(errors)]).max()
    assert solution.optimal
    assert solution.objective <= best + solution.tolerance + 1e-15 * scale
    assert solution.total_bytes == nbytes[rows, solution.choice].sum() <= budget
    assert solution.objective == pytest.approx(errors[rows, solution.choice].sum(), rel=1e-12, abs=1e-15 * scale)
    assert solution.lower_bound <= solution.objective
    assert solution.gap >= 0
    assert solution.lower_bound <= best + 1e-12 * max(scale, 1e-300)
    if solution.proof == "bound met":
        assert solution.gap <= solution.tolerance + 1e-9 * (abs(solution.objective) + solution.multiplier * budget)


@pytest.mark.parametrize("n", [30, 45, 60])
@pytest.mark.parametrize("fraction", [0.15, 0.5, 0.85])
def test_equals_highs(
    solve_by_highs: Callable[..., float], make_instance: Callable[..., tuple], n: int, fraction: float
) -> None:
    errors, nbytes, budget = make_instance(n, (2, 3, 4), (0, 16, 64), seed=n, fraction=fraction)
    solution = solve_allocation(errors, nbytes, budget)
    assert solution.optimal
    assert solution.total_bytes <= budget
    assert solution.objective <= solve_by_highs(errors, nbytes, budget) * (1 + 1e-9)


def test_full_size_is_proven_and_its_bound_can_be_recomputed(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, budget = make_instance(560, (2, 3, 4, 5, 6, 7, 8, 2, 3), (0, 64, 128), seed=3, fraction=0.3)
    solution = solve_allocation(errors, nbytes, budget)
    assert solution.optimal
    assert solution.proof == "core exhausted"
    assert lagrangian_bound(errors, nbytes, budget, solution.multiplier) == pytest.approx(
        solution.lower_bound, rel=1e-12
    )
    assert 0 <= solution.relative_gap < 1e-3
    # the bound does not depend on the optimal multiplier: any λ gives a weaker or equal one
    assert lagrangian_bound(errors, nbytes, budget, solution.multiplier * 1.3) <= solution.lower_bound * (1 + 1e-12)


def test_the_same_table_gives_the_same_choice(make_instance: Callable[..., tuple]) -> None:
    table = make_instance(60, (2, 3, 4), (0, 16, 64), seed=1, fraction=0.4)
    assert np.array_equal(solve_allocation(*table).choice, solve_allocation(*table).choice)


def test_a_scale_of_the_errors_changes_nothing(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, budget = make_instance(40, (2, 3, 4), (0, 16, 64), seed=2, fraction=0.4)
    small = solve_allocation(errors * 2.0**-200, nbytes, budget)
    assert np.array_equal(small.choice, solve_allocation(errors, nbytes, budget).choice)


def test_what_leaves_no_room_is_no_met_bound() -> None:
    """Neither step fits the one byte that is left, so nothing is better; λ's bound does not say so."""
    solution = solve_allocation([[3.0, 0.0], [2.0, 0.0]], [[1, 3], [1, 5]], 3)
    assert solution.choice.tolist() == [0, 0]
    assert solution.optimal
    assert solution.lower_bound == pytest.approx(3.5)
    assert solution.proof == "core exhausted"


def test_slack_budget_takes_the_least_errors_and_says_so() -> None:
    solution = solve_allocation([[2.0, 1.0, 1.0], [3.0, 4.0, 5.0]], [[1, 5, 4], [2, 3, 4]], 1000)
    assert solution.choice.tolist() == [2, 0]  # of equal errors the smaller one
    assert solution.slack
    assert solution.optimal
    assert solution.multiplier == 0
    assert solution.gap == 0


def test_the_budget_is_met_to_the_byte() -> None:
    errors, nbytes = [[1.0, 0.0], [1.0, 0.0]], [[10, 20], [10, 21]]
    assert solve_allocation(errors, nbytes, 41).choice.tolist() == [1, 1]
    assert solve_allocation(errors, nbytes, 40).total_bytes == 30


def test_infeasible_budget_names_the_smallest() -> None:
    with pytest.raises(InfeasibleBudget, match=r"smallest possible allocation of 30 bytes.*raise the budget by 1") as e:
        solve_allocation([[1.0, 0.0], [1.0, np.inf]], [[10, 5], [25, 1]], 29)
    assert e.value.smallest_bytes == 30


def test_work_limit_never_claims_a_proof() -> None:
    # value equal to weight and no way to fill the budget: bounds say nothing, only enumeration does
    rng = np.random.default_rng(0)
    weight = 2 * rng.integers(10**8, 10**9, 40)
    errors = np.column_stack([weight.astype(float), np.zeros(40)])
    nbytes = np.column_stack([np.zeros(40, dtype=np.int64), weight])
    solution = solve_allocation(errors, nbytes, int(weight.sum() // 2) | 1, work_limit=5_000)
    assert not solution.optimal
    assert solution.proof == "work limit reached"
    assert solution.gap > 0
    assert solution.total_bytes <= solution.budget


@pytest.mark.parametrize(
    ("errors", "nbytes", "budget", "error", "message"),
    [
        ([[1.0, np.nan]], [[1, 2]], 5, NonFiniteValues, "matrix 0, option 1 is nan"),
        ([[1.0, -np.inf]], [[1, 2]], 5, NonFiniteValues, "-inf"),
        ([[1.0], [np.inf]], [[1], [2]], 5, ConfigError, "matrix 1 has no available option"),
        ([[1.0, 2.0]], [[1], [2]], 5, ConfigError, "one shape"),
        ([], [], 5, ConfigError, "one shape"),
        ([[1.0]], [[1.5]], 5, ConfigError, "integers"),
        ([[1.0]], [[-1]], 5, ConfigError, "0 or more"),
        ([[1.0]], [[1]], 5.0, ConfigError, "whole number"),
        ([[1.0]], [[1]], True, ConfigError, "whole number"),
        ([[1e200]], [[1]], 5, ConfigError, "exceeds"),
        ([[1.0]], [[2**62]], 2**62, ConfigError, "not supported"),
    ],
)
def test_bad_tables_are_refused(errors: list, nbytes: list, budget: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve_allocation(errors, nbytes, budget)
