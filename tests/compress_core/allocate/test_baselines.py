"""Greedy, minimax and the discretised DP: within the budget, refused like the solver, and never better than it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.allocate import AllocationProblem, Budget, solve_allocation, uniform_candidates
from compress_core.allocate.baselines import (
    BASELINES,
    baseline_allocation,
    discretised_dp_choice,
    greedy_choice,
    minimax_choice,
)
from compress_core.errors import ConfigError, InfeasibleBudget, NonFiniteValues

ALL = pytest.mark.parametrize("kind", list(BASELINES))


@st.composite
def instances(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    errors = rng.integers(0, 5, (n, k)).astype(float) if draw(st.booleans()) else rng.lognormal(0, 2, (n, k))
    errors[:, 1:][rng.random((n, k - 1)) < 0.2] = np.inf
    nbytes = rng.integers(0, draw(st.sampled_from([4, 1000, 10**11])), (n, k))
    low = int(np.where(np.isfinite(errors), nbytes, 2**60).min(axis=1).sum())
    high = int(np.where(np.isfinite(errors), nbytes, 0).max(axis=1).sum())
    return errors, nbytes, low + int(draw(st.floats(0, 1.1)) * (high - low))


@settings(max_examples=150, deadline=None)
@given(instances())
def test_the_optimum_is_at_most_every_baseline_and_all_keep_to_the_budget(
    instance: tuple[np.ndarray, np.ndarray, int],
) -> None:
    errors, nbytes, budget = instance
    rows = np.arange(len(errors))
    optimum = solve_allocation(errors, nbytes, budget)
    assert optimum.optimal
    uniform = [j for j in range(errors.shape[1]) if np.isfinite(errors[:, j]).all() and nbytes[:, j].sum() <= budget]
    choices = [choose(errors, nbytes, budget) for choose in BASELINES.values()]
    choices += [discretised_dp_choice(errors, nbytes, budget, buckets=b) for b in (1, 7)]
    choices += [np.full(len(errors), j) for j in uniform]
    for choice in choices:
        assert np.isfinite(errors[rows, choice]).all()
        assert nbytes[rows, choice].sum() <= budget
        assert optimum.objective <= errors[rows, choice].sum() * (1 + 1e-12) + optimum.tolerance


@ALL
def test_refused_as_the_solver_refuses(kind: str) -> None:
    choose = BASELINES[kind]
    errors, nbytes = [[1.0, 0.0], [1.0, np.inf]], [[10, 5], [25, 1]]
    with pytest.raises(InfeasibleBudget, match=r"smallest possible allocation of 30 bytes.*raise the budget by 1") as e:
        choose(errors, nbytes, 29)
    assert e.value.smallest_bytes == 30
    assert choose(errors, nbytes, 30).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="matrix 0 has no available option"):
        choose([[np.inf]], [[1]], 5)
    with pytest.raises(NonFiniteValues, match="matrix 0, option 0"):
        choose([[np.nan]], [[1]], 5)
    with pytest.raises(ConfigError, match="nbytes must be integers"):
        choose([[1.0]], [[1.0]], 5)
    with pytest.raises(ConfigError, match="whole number of bytes"):
        choose([[1.0]], [[1]], 5.5)  # type: ignore[arg-type]


@ALL
def test_a_slack_budget_takes_the_least_errors(kind: str) -> None:
    errors, nbytes = [[2.0, 1.0, 1.5], [3.0, 4.0, 5.0]], [[1, 5, 4], [2, 3, 4]]
    chosen = BASELINES[kind](errors, nbytes, 1000)
    if kind == "minimax":  # it is content below its threshold
        assert max(errors[i][j] for i, j in enumerate(chosen)) == 3.0
    else:
        assert chosen.tolist() == [1, 0]


def test_greedy_takes_the_steepest_step_that_fits() -> None:
    # 4 nats for 4 bytes beats 3 for 4; then only the third row's step fits the 2 bytes that are left
    errors, nbytes = [[4.0, 0.0], [3.0, 0.0], [1.0, 0.0]], [[0, 4], [0, 4], [0, 2]]
    assert greedy_choice(errors, nbytes, 6).tolist() == [1, 0, 1]
    # over a bad middle option: the far one is steeper
    assert greedy_choice([[10.0, 9.0, 0.0]], [[0, 2, 4]], 4).tolist() == [2]
    # and a middle one where the far one does not fit
    assert greedy_choice([[10.0, 9.0, 0.0]], [[0, 2, 4]], 3).tolist() == [1]
    # the textbook trap: one small steep step keeps the large better one out
    assert greedy_choice([[2.0, 0.0], [9.0, 0.0]], [[0, 1], [0, 10]], 10).tolist() == [1, 0]
    assert solve_allocation([[2.0, 0.0], [9.0, 0.0]], [[0, 1], [0, 10]], 10).choice.tolist() == [0, 1]


def test_minimax_makes_the_worst_matrix_as_good_as_can_be() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        errors, nbytes = rng.random((4, 3)), rng.integers(0, 50, (4, 3))
        budget = int(nbytes.min(axis=1).sum()) + int(rng.integers(0, 60))
        worst = [
            max(errors[i, j] for i, j in enumerate(c))
            for c in itertools.product(range(3), repeat=4)
            if sum(nbytes[i, j] for i, j in enumerate(c)) <= budget
        ]
        assert errors[np.arange(4), minimax_choice(errors, nbytes, budget)].max() == min(worst)


def test_the_discretised_dp_is_exact_where_a_bucket_is_a_byte() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        errors, nbytes = rng.random((9, 4)), rng.integers(0, 60, (9, 4))
        budget = int(nbytes.min(axis=1).sum()) + int(rng.integers(0, 200))
        best = solve_allocation(errors, nbytes, budget).objective
        chosen = discretised_dp_choice(errors, nbytes, budget, buckets=1000)
        assert errors[np.arange(9), chosen].sum() == pytest.approx(best, rel=1e-9)


def test_finer_buckets_lose_less(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, budget = make_instance(210, (2, 3, 4), (0, 16, 64), seed=0, fraction=0.4)
    best = solve_allocation(errors, nbytes, budget).objective
    rows = np.arange(len(errors))
    loss = [
        errors[rows, discretised_dp_choice(errors, nbytes, budget, buckets=b)].sum() / best - 1
        for b in (300, 1000, 10_000)
    ]
    assert loss[0] > loss[1] > loss[2] > 0
    assert loss[1] > 0.02


@pytest.mark.parametrize("buckets", [0, -1, 10**7])
def test_senseless_buckets_are_refused(buckets: int) -> None:
    with pytest.raises(ConfigError, match="buckets"):
        discretised_dp_choice([[1.0]], [[1]], 5, buckets=buckets)


@ALL
def test_an_allocation_by_name_tells_its_loss(small_problem: AllocationProblem, kind: str) -> None:
    budget = uniform_candidates(small_problem)[2].total_bytes
    found = baseline_allocation(small_problem, budget, kind)
    assert found.allocation.kind == kind
    assert found.allocation.total_bytes <= budget == found.allocation.budget_bytes
    assert found.loss == pytest.approx(found.allocation.objective / found.optimum.objective - 1)
    assert found.loss >= -1e-12
    whole = Budget.parse(budget + small_problem.fixed_bytes, scope="model")
    assert baseline_allocation(small_problem, whole, kind).allocation.configs == found.allocation.configs
    with pytest.raises(InfeasibleBudget, match="use scope decoder"):
        baseline_allocation(small_problem, Budget.parse(60_000, scope="model"), kind)


@ALL
def test_weights_of_single_cells_count(small_problem: AllocationProblem, kind: str) -> None:
    budget = uniform_candidates(small_problem)[2].total_bytes
    by_cell = replace(small_problem, weights=np.repeat(small_problem.weights[:, None], 6, axis=1))
    found = baseline_allocation(small_problem, budget, kind).allocation
    assert baseline_allocation(by_cell, budget, kind).allocation.configs == found.configs


def test_minimax_loses_much_on_a_sum(small_problem: AllocationProblem) -> None:
    budget = uniform_candidates(small_problem)[2].total_bytes
    assert baseline_allocation(small_problem, budget, "minimax").loss > 0.05


def test_an_unknown_name_is_refused(small_problem: AllocationProblem) -> None:
    with pytest.raises(ConfigError, match="no baseline 'best': choose out of greedy, minimax, discretised_dp"):
        baseline_allocation(small_problem, 10**6, "best")
