"""Constraints against brute force: every combination of pins, vetoes, limits, groups and a number of configs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    ConfigPattern,
    Constraints,
    Group,
    Limit,
    MatrixPattern,
    Pin,
    Veto,
    bound_of,
    constrained,
    optimal_allocation,
    solve_allocation,
    solve_constrained,
)
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

MENU = (
    *(CompressionConfig(b_q=b, rank=r) for b in (2, 3) for r in (0, 8)),
    CompressionConfig(b_q=4, codebook="scalar"),
)


def random_problem(rng: np.random.Generator) -> AllocationProblem:
    """Up to six matrices of two layers, some of them experts, some too small for rank 8."""
    keys = [MatrixKey(0, "q"), MatrixKey(0, "k"), MatrixKey(0, "v"), MatrixKey(1, "gate", 0), MatrixKey(1, "gate", 1)]
    keys += [MatrixKey(1, "up", 0), MatrixKey(1, "up", 1), MatrixKey(1, "q"), MatrixKey(1, "k")]
    chosen = sorted(rng.choice(len(keys), int(rng.integers(2, 6)), replace=False))
    specs = tuple(MatrixSpec(keys[i], int(rng.choice([4, 32])), 32, f"m{i}.weight") for i in chosen)
    k = int(rng.integers(2, 5 if len(specs) > 4 else 6))
    errors = rng.integers(0, 6, (len(specs), k)).astype(float) if rng.random() < 0.3 else rng.random((len(specs), k))
    errors[:, 1:][rng.random((len(specs), k - 1)) < 0.1] = np.inf
    nbytes = rng.integers(0, int(rng.choice([4, 50, 10**6])), (len(specs), k))
    return AllocationProblem(specs, MENU[:k], errors, nbytes, rng.random(len(specs)) + 0.1)


def random_constraints(rng: np.random.Generator, problem: AllocationProblem) -> Constraints:
    def pattern() -> MatrixPattern:
        key = problem.specs[int(rng.integers(len(problem.specs)))].key
        layers = ((key.layer_idx, key.layer_idx),) if rng.random() < 0.5 else None
        return MatrixPattern(layers, (key.projection,) if rng.random() < 0.7 else None)

    def config() -> CompressionConfig:
        return problem.menu[int(rng.integers(len(problem.menu)))]

    present = {spec.key.projection for spec in problem.specs}
    sets = [p for p in (("q", "k"), ("q", "k", "v"), ("gate", "up"), ("gate",), ("q", "gate")) if present & set(p)]
    groups = []
    for _ in range(int(rng.integers(0, 3))):
        projections = sets[int(rng.integers(len(sets)))] if sets else ("q", "k", "v", "o", "gate", "up", "down")
        together = len(projections) == 1 or rng.random() < 0.3
        experts: Literal["together", "each"] = "together" if together else "each"
        groups.append(Group(projections, agree="config" if rng.random() < 0.5 else "b_q", experts=experts))
    vetoes = (ConfigPattern(b_q=(2,)), ConfigPattern(rank=(8,)), ConfigPattern(codebook=("scalar",)))
    limits: tuple[dict[str, float], ...] = ({"min_b_q": 3}, {"max_b_q": 3}, {"min_rank": 8}, {"max_rank": 4})
    return Constraints(
        pins=(Pin(pattern(), config()),) if rng.random() < 0.25 else (),
        vetoes=(Veto(pattern(), vetoes[int(rng.integers(3))]),) if rng.random() < 0.3 else (),
        limits=(Limit(pattern(), **limits[int(rng.integers(4))]),) if rng.random() < 0.3 else (),  # type: ignore[arg-type]
        groups=tuple(groups),
        max_configs=int(rng.integers(1, 4)) if rng.random() < 0.5 else None,
    )


def may_take(problem: AllocationProblem, constraints: Constraints, row: int, column: int) -> bool:
    """Pins, vetoes and limits as a reader would check them for one cell."""
    spec, config = problem.specs[row], problem.config_of(row, column)
    limit = min(spec.out_features, spec.in_features)
    for pin in constraints.pins:
        wanted = {**pin.config.to_dict(), "rank": min(pin.config.rank, limit)}
        if pin.matrices.matches(spec.key) and config.to_dict() != wanted:
            return False
    for veto in constraints.vetoes:
        p = veto.configs
        hit = config.b_q in (p.b_q or (config.b_q,)) and config.rank in (p.rank or (config.rank,))
        if veto.matrices.matches(spec.key) and hit and config.codebook in (p.codebook or (config.codebook,)):
            return False
    for bound in constraints.limits:
        low, high = bound.min_b_q or 0, bound.max_b_q or 99
        few, many = min(bound.min_rank or 0, limit), 99 if bound.max_rank is None else bound.max_rank
        if bound.matrices.matches(spec.key) and not (low <= config.b_q <= high and few <= config.rank <= many):
            return False
    return bool(np.isfinite(problem.errors[row, column]))


def agrees(problem: AllocationProblem, constraints: Constraints, choice: tuple[int, ...]) -> bool:
    """Groups and the number of configs, as a reader would check them."""
    for group in constraints.groups:
        seen: dict[tuple[int, int], set[object]] = {}
        for spec, j in zip(problem.specs, choice, strict=True):
            if spec.key.projection in group.projections:
                home = (spec.key.layer_idx, -9 if group.experts == "together" else spec.key.expert_idx)
                seen.setdefault(home, set()).add(j if group.agree == "config" else problem.menu[j].b_q)
        if any(len(values) > 1 for values in seen.values()):
            return False
    return constraints.max_configs is None or len(set(choice)) <= constraints.max_configs


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(seed: int) -> None:
    outcomes = {"solved": 0, "too small": 0, "nothing left": 0}
    for case in range(50):
        rng = np.random.default_rng([seed, case])
        problem = random_problem(rng)
        constraints = random_constraints(rng, problem)
        rows, menu = range(len(problem.specs)), range(len(problem.menu))
        cells = [[j for j in menu if may_take(problem, constraints, i, j)] for i in rows]
        feasible = [c for c in itertools.product(*cells) if agrees(problem, constraints, c)]
        total = [int(problem.nbytes[rows, choice].sum()) for choice in feasible]
        if not feasible:
            outcomes["nothing left"] += 1
            with pytest.raises(ConfigError):
                optimal_allocation(problem, 10**9, constraints=constraints)
            continue
        budget = int(min(total) + rng.uniform(-0.1, 1.0) * (max(total) - min(total)))
        if budget < min(total):
            outcomes["too small"] += 1
            with pytest.raises(InfeasibleBudget) as caught:
                optimal_allocation(problem, budget, constraints=constraints)
            assert caught.value.smallest_bytes == min(total)
            continue
        outcomes["solved"] += 1
        table = problem.objective_table
        best = min(table[rows, c].sum() for c, nbytes in zip(feasible, total, strict=True) if nbytes <= budget)
        solution = optimal_allocation(problem, budget, constraints=constraints).solution
        assert solution is not None
        assert solution.optimal
        assert tuple(solution.choice.tolist()) in feasible
        assert solution.total_bytes == problem.nbytes[rows, solution.choice].sum() <= budget
        assert solution.objective == pytest.approx(table[rows, solution.choice].sum(), rel=1e-12)
        assert solution.objective <= best + 1e-11
        assert solution.lower_bound <= best + 1e-11
        again = bound_of(constrained(problem, constraints), budget, solution)
        assert min(again, solution.objective) == pytest.approx(solution.lower_bound, rel=1e-9, abs=1e-12)
    assert min(outcomes.values()) >= 2, outcomes


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("agree", [None, "config", "b_q"])
def test_few_configs_equal_every_set_solved_by_itself(
    make_instance: Callable[..., tuple], m: int, agree: Literal["config", "b_q"] | None
) -> None:
    """35 matrices: too many for brute force over choices, few enough for brute force over sets of configs."""
    errors, nbytes, budget = make_instance(35, (2, 3, 4), (0, 16, 64), seed=m, fraction=0.35)
    specs = tuple(MatrixSpec(MatrixKey(i // 7, PROJECTIONS[i % 7]), 512, 512, f"{i}.weight") for i in range(35))
    menu = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 16, 64))
    problem = AllocationProblem(specs, menu, errors, nbytes, np.ones(35))
    groups = () if agree is None else (Group(("q", "k", "v"), agree=agree),)
    table = constrained(problem, Constraints(groups=groups))
    best = np.inf
    for columns in itertools.combinations(range(9), m):
        merged = table.merged(columns)
        if merged.nbytes.min(axis=1, where=np.isfinite(merged.errors), initial=2**60).sum() <= budget:
            best = min(best, solve_allocation(merged.errors, merged.nbytes, budget).objective)
    solution = solve_constrained(constrained(problem, Constraints(groups=groups, max_configs=m)), budget)
    assert solution.optimal
    assert solution.objective == pytest.approx(best, rel=1e-11)
    assert len(set(solution.choice.tolist())) <= m
