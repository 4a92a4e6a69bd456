"""Prices of pins, bytes and second choices against solving everything by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    Budget,
    Constraints,
    Group,
    Limit,
    MatrixPattern,
    WhatIf,
    optimal_allocation,
    second_best,
    solve_allocation,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

MENU = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3) for r in (0, 8))
CONSTRAINTS = (
    Constraints(),
    Constraints(groups=(Group(("q", "k"), agree="b_q"), Group(("v", "o")))),
    Constraints(limits=(Limit(MatrixPattern(projections=("q",)), min_b_q=3),), max_configs=2),
)


def random_problem(seed: int) -> AllocationProblem:
    rng = np.random.default_rng(seed)
    # k is too small for rank 8, so that two configs of the menu are one for it
    shapes = {"q": 32, "k": 4, "v": 32, "o": 32}
    specs = tuple(MatrixSpec(MatrixKey(0, p), out, 32, f"{p}.weight") for p, out in shapes.items())
    errors = rng.integers(0, 8, (4, 4)).astype(float) if seed % 2 else rng.random((4, 4))
    nbytes = rng.integers(0, 60, (4, 4))
    errors[1, 1::2], nbytes[1, 1::2] = errors[1, ::2], nbytes[1, ::2]
    return AllocationProblem(specs, MENU, errors, nbytes, rng.random(4) + 0.1)


def feasible(problem: AllocationProblem, constraints: Constraints, budget: int) -> dict[tuple[int, ...], float]:
    """Every choice that keeps to the constraints and the budget, with its objective."""
    rows = range(4)
    found = {}
    for choice in itertools.product(rows, repeat=4):
        b_q = [MENU[j].b_q for j in choice]
        if constraints.groups and (b_q[0] != b_q[1] or choice[2] != choice[3]):
            continue
        if constraints.max_configs and (len(set(choice)) > 2 or b_q[0] < 3):
            continue
        if problem.nbytes[rows, choice].sum() <= budget:
            found[choice] = float(problem.objective_table[rows, choice].sum())
    return found


@pytest.mark.parametrize(
    ("constraints", "n"), zip(CONSTRAINTS, (15, 15, 6), strict=True), ids=["free", "groups", "few"]
)
def test_prices_equal_brute_force(constraints: Constraints, n: int) -> None:
    no_second = 0
    for seed in range(n):
        problem = random_problem(seed)
        everything = feasible(problem, constraints, 10**9)
        totals = sorted(int(problem.nbytes[range(4), c].sum()) for c in everything)
        budget = totals[len(totals) // (3 + seed % 5)]
        choices = feasible(problem, constraints, budget)
        what_if = WhatIf(problem, budget, constraints)
        best = min(choices.values())
        assert what_if.solution.objective == pytest.approx(best, abs=1e-12)
        chosen = what_if.solution.choice
        for row, regret in enumerate(what_if.regrets()):
            key = problem.specs[row].key
            taken = {c: problem.config_of(row, c[row]) for c in choices}
            others = [v for c, v in choices.items() if taken[c] != problem.config_of(row, int(chosen[row]))]
            if not others:
                with pytest.raises((InfeasibleBudget, ConfigError)):
                    what_if.other_than_chosen(key)
            else:
                price = what_if.other_than_chosen(key)
                assert price.difference == pytest.approx(min(others) - best, abs=1e-12)
                assert price.proven
                assert price.at_least <= price.difference <= price.at_most
                assert regret.at_least <= price.difference + 1e-12
                assert key in price.changed
            wanted = MENU[3].clamped(problem.specs[row].out_features, 32)
            pinned = [v for c, v in choices.items() if taken[c] == wanted]
            if pinned:
                assert what_if.pin(key, MENU[3]).difference == pytest.approx(min(pinned) - best, abs=1e-12)
        more = what_if.more_bytes(7)
        assert more.difference == pytest.approx(
            min(feasible(problem, constraints, budget + 7).values()) - best, abs=1e-12
        )
        assert more.total_bytes <= budget + 7
        second = what_if.second_best()
        rival = second_by_brute_force(problem, constraints, choices, tuple(chosen.tolist()))
        if second is None:
            no_second += 1
            assert rival is None
        else:
            assert rival is not None
            assert second.difference == pytest.approx(rival - best, abs=1e-12)
            assert second.proven
    assert no_second < n


def second_by_brute_force(
    problem: AllocationProblem,
    constraints: Constraints,
    choices: dict[tuple[int, ...], float],
    chosen: tuple[int, ...],
) -> float | None:
    """The best of the choices that differ from the chosen in the error or the bytes of what must agree."""

    def cells(choice: tuple[int, ...]) -> list[tuple[float, int]]:
        each = [(float(problem.objective_table[i, j]), int(problem.nbytes[i, j])) for i, j in enumerate(choice)]
        if not constraints.groups:
            return each
        return [(round(sum(e for e, _ in pair), 12), sum(w for _, w in pair)) for pair in (each[:2], each[2:])]

    return min((value for choice, value in choices.items() if cells(choice) != cells(chosen)), default=None)


def test_the_second_best_of_one_config_for_all() -> None:
    """At the bytes of the smallest uniform choice, and up to the largest: what is second may be none."""
    asked = 0
    for seed in range(0, 20, 2):
        problem = random_problem(seed)
        rows = np.arange(4)
        objectives, nbytes = problem.objective_table.sum(axis=0), problem.nbytes.sum(axis=0)
        for budget in sorted(set(nbytes.tolist())):
            fits = np.sort(objectives[nbytes <= budget])
            second = WhatIf(problem, budget, Constraints(max_configs=1)).second_best()
            assert (second is None) == (len(fits) < 2)
            if second is not None:
                assert second.objective == pytest.approx(fits[1])
                assert second.total_bytes == problem.nbytes[rows, second.choice].sum() <= budget
                asked += 1
    assert asked > 20


def test_the_second_best_of_a_table_equals_brute_force() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        n, k = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        errors = rng.integers(0, 6, (n, k)).astype(float) if seed % 3 == 0 else rng.random((n, k))
        nbytes = rng.integers(0, (3, 20, 10**6)[seed % 3], (n, k))
        errors[:, 1:][rng.random((n, k - 1)) < 0.1] = np.inf
        low = int(np.where(np.isfinite(errors), nbytes, 2**60).min(axis=1).sum())
        budget = int(rng.integers(low, nbytes.max(axis=1).sum() + 2))
        first = solve_allocation(errors, nbytes, budget)
        rows = np.arange(n)
        own = (errors[rows, first.choice], nbytes[rows, first.choice])
        rivals = [
            float(errors[rows, c].sum())
            for c in map(list, itertools.product(range(k), repeat=n))
            if np.isfinite(errors[rows, c]).all()
            and nbytes[rows, c].sum() <= budget
            and not ((errors[rows, c] == own[0]) & (nbytes[rows, c] == own[1])).all()
        ]
        found = second_best(errors, nbytes, budget, first.choice, first.multiplier)
        if not rivals:
            assert found is None
            continue
        assert found is not None
        assert found.proven
        assert found.objective == pytest.approx(min(rivals), abs=1e-9)
        assert found.total_bytes == nbytes[rows, found.choice].sum() <= budget


def test_full_size(make_instance: Callable[..., tuple]) -> None:
    """Prices at 560 × 27 agree with the certificate: a megabyte is worth about its shadow price."""
    errors, nbytes, budget = make_instance(560, (2, 3, 4), (0, 8, 16, 32, 64, 96, 128, 192, 256), seed=5, fraction=0.4)
    specs = tuple(MatrixSpec(MatrixKey(i // 7, PROJECTIONS[i % 7]), 512, 512, f"{i}.weight") for i in range(560))
    menu = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 8, 16, 32, 64, 96, 128, 192, 256))
    what_if = WhatIf(AllocationProblem(specs, menu, errors, nbytes, np.ones(560)), budget)
    more, less = what_if.more_bytes(10**6), what_if.more_bytes(-(10**6))
    assert more.proven
    assert less.proven
    assert -more.difference <= what_if.shadow_price_per_mb * (1 + 1e-6) <= less.difference * (1 + 1e-3)
    second = what_if.second_best()
    assert second is not None
    assert second.proven
    assert 0 <= second.difference < 1e-3 * what_if.solution.objective
    assert 1 <= len(second.changed) < 560
    regrets = {regret.key: regret for regret in what_if.regrets()}
    key = max(regrets, key=lambda k: regrets[k].at_least)
    assert 0 < regrets[key].at_least <= what_if.other_than_chosen(key).difference


def test_questions_that_have_no_answer_are_refused(small_problem: AllocationProblem) -> None:
    budget = Budget.parse("3 bpw").matrix_bytes(small_problem)
    solution = optimal_allocation(small_problem, budget).solution
    what_if = WhatIf(small_problem, budget, solution=solution)
    assert what_if.solution is solution
    with pytest.raises(ConfigError, match=r"no matrix 9\.q"):
        what_if.pin(MatrixKey(9, "q"), small_problem.menu[0])
    with pytest.raises(ConfigError, match=r"matrix 0\.q cannot take trellis 8b"):
        what_if.pin(MatrixKey(0, "q"), CompressionConfig(b_q=8))
    with pytest.raises(InfeasibleBudget):
        what_if.more_bytes(-budget)
    narrow = WhatIf(small_problem, budget, Constraints(limits=(Limit(MatrixPattern(((0, 0),)), max_b_q=2),)))
    with pytest.raises(ConfigError, match="under the constraints"):
        narrow.pin(MatrixKey(0, "q"), small_problem.menu[-1])
