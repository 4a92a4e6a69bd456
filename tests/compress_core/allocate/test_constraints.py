"""Constraints as people write them, and what is said where they cannot be kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    Budget,
    ConfigPattern,
    Constraints,
    Group,
    Limit,
    MatrixPattern,
    Pin,
    Veto,
    optimal_allocation,
)
from compress_core.allocate.constrained import constrained
from compress_core.allocate.constrained_solver import solve_constrained
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey, MatrixSpec

WRITTEN: dict[str, Any] = {
    "pins": [{"matrices": {"layers": [0, "2-3"], "projections": ["q"]}, "config": {"b_q": 4, "rank": 32}}],
    "vetoes": [{"matrices": {"projections": ["down"]}, "configs": {"b_q": [2], "codebook": "trellis"}}],
    "limits": [{"matrices": {}, "min_b_q": 2, "max_bits_per_weight": 9.5}],
    "groups": [{"projections": ["v", "q", "k"], "agree": "b_q"}, {"projections": ["up", "gate"], "layers": ["0-1"]}],
    "max_configs": 4,
}


def test_json_round_trip() -> None:
    constraints = Constraints.from_dict(json.loads(json.dumps(WRITTEN)))
    again = Constraints.from_dict(json.loads(json.dumps(constraints.to_dict())))
    assert again == constraints
    assert constraints.groups[0].projections == ("q", "k", "v")
    assert str(constraints.pins[0]) == "pin 0,2-3.q = trellis 4b r32 f4"
    assert constraints
    assert not Constraints()
    assert not Constraints.from_dict({"pins": None})


def test_all_of_it_is_kept(small_problem: AllocationProblem) -> None:
    constraints = Constraints.from_dict(WRITTEN)
    allocation = optimal_allocation(small_problem, Budget.parse("4 bpw"), constraints=constraints)
    by_key = {item.key: item for item in allocation.items}
    for layer in (0, 2, 3):
        assert by_key[MatrixKey(layer, "q")].config == CompressionConfig(b_q=4, rank=32)
    for layer in range(4):
        assert by_key[MatrixKey(layer, "down")].config.b_q > 2
        assert len({by_key[MatrixKey(layer, p)].config.b_q for p in "qkv"}) == 1
    for layer in (0, 1):
        assert by_key[MatrixKey(layer, "gate")].menu_config == by_key[MatrixKey(layer, "up")].menu_config
    assert len({item.menu_config for item in allocation.items}) <= 4
    assert all(8 * item.nbytes <= 9.5 * item.spec.n_weights for item in allocation.items)
    assert allocation.solution is not None
    assert allocation.solution.optimal


def test_each_constraint_costs_something_and_none_nothing(small_problem: AllocationProblem) -> None:
    budget = Budget.parse("3.5 bpw")
    free = optimal_allocation(small_problem, budget).objective
    assert optimal_allocation(small_problem, budget, constraints=Constraints()).objective == free
    for name, value in WRITTEN.items():
        alone = optimal_allocation(small_problem, budget, constraints=Constraints.from_dict({name: value}))
        assert alone.objective >= free * (1 - 1e-12)
    one = optimal_allocation(small_problem, budget, constraints=Constraints(max_configs=1))
    assert one.is_uniform
    many = optimal_allocation(small_problem, budget, constraints=Constraints(max_configs=99))
    assert many.objective == free


def test_bits_per_weight_are_compared_exactly(small_problem: AllocationProblem) -> None:
    """2.1 bits are 21/10, so bytes that meet them to the bit are allowed."""
    spec = MatrixSpec(MatrixKey(0, "q"), 10, 8, "q.weight")
    assert Limit(MatrixPattern(), max_bits_per_weight=2.1).allows(spec, small_problem.menu[0], 21)
    assert Limit(MatrixPattern(), min_bits_per_weight=2.1).allows(spec, small_problem.menu[0], 21)
    assert not Limit(MatrixPattern(), max_bits_per_weight=2.1).allows(spec, small_problem.menu[0], 22)


def test_a_rank_beyond_the_matrix_means_all_that_it_can_have(small_problem: AllocationProblem) -> None:
    constraints = Constraints(limits=(Limit(MatrixPattern(), min_rank=32),))
    allocation = optimal_allocation(small_problem, 10**9, constraints=constraints)
    assert {item.config.rank for item in allocation.items} == {16, 32}


def test_the_infeasible_budget_says_what_would_do_and_why(small_problem: AllocationProblem) -> None:
    smallest = small_problem.smallest_bytes
    assert smallest is not None
    constraints = Constraints(
        limits=(Limit(MatrixPattern(), min_b_q=3), Limit(MatrixPattern(projections=("q",)), max_b_q=4)),
        groups=(Group(("q", "k", "v")),),
    )
    with pytest.raises(InfeasibleBudget, match=r"raised by limit \*\.\*: min_b_q=3: allow") as caught:
        optimal_allocation(small_problem, smallest, constraints=constraints)
    enough = caught.value.smallest_bytes
    assert enough > smallest
    assert optimal_allocation(small_problem, enough, constraints=constraints).total_bytes == enough
    with pytest.raises(InfeasibleBudget, match=r"scope decoder") as caught:
        optimal_allocation(small_problem, Budget.parse(enough, scope="model"), constraints=constraints)
    assert caught.value.smallest_bytes == enough + small_problem.fixed_bytes


def test_few_configs_can_raise_the_smallest_budget(small_problem: AllocationProblem) -> None:
    """One config for all where the smallest one is missing for a single matrix."""
    errors = small_problem.errors.copy()
    errors[3, 0] = np.inf  # 2 bits, rank 0
    problem = AllocationProblem(
        small_problem.specs, small_problem.menu, errors, small_problem.nbytes, small_problem.weights
    )
    smallest = problem.smallest_bytes
    assert smallest is not None
    with pytest.raises(InfeasibleBudget, match="at most 1 configs"):
        optimal_allocation(problem, smallest, constraints=Constraints(max_configs=1))


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(pins=(Pin(MatrixPattern(((9, 9),)), CompressionConfig(b_q=2)),)), r"pin 9\.\*.*no such matrix"),
        (Constraints(groups=(Group(("q", "k"), layers=((7, 8),)),)), r"group 7-8\.q\+k.*no such matrix"),
        (
            Constraints(pins=(Pin(MatrixPattern(), CompressionConfig(b_q=8)),)),
            r"pin \*\.\* = trellis 8b.*no such config",
        ),
        (
            Constraints(vetoes=(Veto(MatrixPattern(projections=("up",)), ConfigPattern(b_q=(2, 3, 4))),)),
            r"veto \*\.up: b_q=2\|3\|4 leaves matrix 0\.up no",
        ),
        (
            Constraints(
                pins=(Pin(MatrixPattern(((1, 1),), ("k",)), CompressionConfig(b_q=2)),),
                vetoes=(Veto(MatrixPattern(), ConfigPattern(b_q=(2,))),),
            ),
            r"veto \*\.\*: b_q=2 together with pin 1\.k = trellis 2b r0 leaves matrix 1\.k",
        ),
        (
            Constraints(
                pins=(
                    Pin(MatrixPattern(((0, 0),), ("q",)), CompressionConfig(b_q=2)),
                    Pin(MatrixPattern(((0, 0),), ("v",)), CompressionConfig(b_q=3)),
                ),
                groups=(Group(("q", "k", "v"), agree="b_q"),),
            ),
            r"group \*\.q\+k\+v agrees on b_q; pin 0\.q.*; pin 0\.v.*: nothing is left.*0\.q, 0\.k, 0\.v",
        ),
        (
            Constraints(
                pins=(
                    Pin(MatrixPattern(((0, 0),)), CompressionConfig(b_q=2)),
                    Pin(MatrixPattern(((1, 1),)), CompressionConfig(b_q=3)),
                ),
                max_configs=1,
            ),
            r"at most 1 configs: no so few configs",
        ),
    ],
)
def test_what_cannot_be_kept_is_named(small_problem: AllocationProblem, constraints: Constraints, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimal_allocation(small_problem, 10**9, constraints=constraints)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"pin": []}, "unknown field 'pin'"),
        ({"pins": {}}, None),
        ({"pins": 3}, "pins must be a list"),
        ({"pins": [{"matrices": {}}]}, r"pins\.0: a pin needs the fields"),
        ({"pins": [{"matrices": {"layer": [0]}, "config": {"b_q": 2}}]}, r"pins\.0: matrices: unknown field 'layer'"),
        ({"vetoes": [{"configs": {}}]}, r"vetoes\.0: a veto must name"),
        ({"vetoes": [{"configs": {"b_q": ["2"]}}]}, r"vetoes\.0: b_q must be whole"),
        ({"vetoes": [{"configs": {"codebook": ["e9"]}}]}, r"unknown codebook 'e9'"),
        ({"vetoes": [{"configs": {"factor_bits": [5]}}]}, r"4, 8 or 16, not 5"),
        ({"vetoes": [{"configs": {"rank": [-1]}}]}, r"rank must be 0 or more"),
        ({"limits": [{"matrices": {}}]}, r"limits\.0: a limit needs at least one"),
        ({"limits": [{"min_b_q": 4, "max_b_q": 3}]}, r"min_b_q 4 exceeds max_b_q 3"),
        ({"limits": [{"min_rank": 1.5}]}, r"min_rank must be a whole number"),
        ({"limits": [{"max_bits_per_weight": -1}]}, r"0 or more and finite"),
        ({"limits": [{"matrices": {"layers": ["3-1"]}, "min_rank": 1}]}, r"layers: 3-1 is no range"),
        ({"limits": [{"matrices": {"layers": ["x"]}, "min_rank": 1}]}, r"'x' is neither a number nor a range"),
        ({"limits": [{"matrices": {"layers": []}, "min_rank": 1}]}, r"layers must name at least one"),
        ({"limits": [{"matrices": {"projections": ["qq"]}, "min_rank": 1}]}, r"unknown projection 'qq'"),
        ({"groups": [{"projections": ["q"]}]}, r"groups\.0: a group of q alone"),
        ({"groups": [{"projections": "q"}]}, r"needs a list of projections"),
        ({"groups": [{"projections": ["q", "k"], "agree": "rank"}]}, r"agrees on config or b_q, not 'rank'"),
        ({"groups": [{"projections": ["q", "k"], "experts": "some"}]}, r"each or together, not 'some'"),
        ({"max_configs": 0}, "from 1 up, not 0"),
        ({"max_configs": True}, "from 1 up, not True"),
        ([], "must be a mapping"),
    ],
)
def test_mistakes_are_named(written: Any, message: str | None) -> None:
    if message is None:
        assert not Constraints.from_dict(written)
        return
    with pytest.raises(ConfigError, match=message):
        Constraints.from_dict(written)


def test_experts_agree_each_or_together() -> None:
    specs = tuple(MatrixSpec(MatrixKey(0, p, e), 32, 32, f"{p}{e}.weight") for p in ("gate", "up") for e in (0, 1))
    menu = (CompressionConfig(b_q=2), CompressionConfig(b_q=3))
    errors = np.array([[2.0, 1.0], [1.0, 5.0], [9.0, 1.0], [1.0, 1.5]])
    problem = AllocationProblem(specs, menu, errors, np.ones((4, 2), dtype=np.int64), np.ones(4))

    def choice(group: Group) -> list[int]:
        solution = solve_constrained(constrained(problem, Constraints(groups=(group,))), 4)
        return solution.choice.tolist()

    assert choice(Group(("gate", "up"))) == [1, 0, 1, 0]
    assert choice(Group(("gate",), experts="together")) == [0, 0, 1, 0]
    assert choice(Group(("gate", "up"), experts="together")) == [1, 1, 1, 1]


def test_a_work_limit_never_claims_a_proof(small_problem: AllocationProblem) -> None:
    """Neither the states of the enumeration nor the column sets that were not looked at are passed over in silence."""
    table = constrained(small_problem, Constraints(max_configs=3))
    budget = (small_problem.smallest_bytes or 0) * 4 // 3
    best = solve_constrained(table, budget)
    assert best.optimal
    for limits in ({"node_limit": 0}, {"work_limit": 1}):
        stopped = solve_constrained(table, budget, **limits)
        assert stopped.total_bytes <= budget
        assert stopped.lower_bound <= best.objective <= stopped.objective
        assert stopped.optimal == (stopped.proof != "work limit reached")
    assert not solve_constrained(table, budget, work_limit=1).optimal


def test_a_group_with_too_many_combinations_is_refused() -> None:
    specs = tuple(MatrixSpec(MatrixKey(0, "up", e), 32, 32, f"{e}.weight") for e in range(16))
    menu = tuple(CompressionConfig(b_q=2, rank=r) for r in range(2))
    # every subset of the powers of two has bytes of its own, and error in proportion: none dominates another
    power = 2 ** np.arange(16)
    errors, nbytes = np.column_stack([power, 0 * power]).astype(float), np.column_stack([0 * power, power])
    problem = AllocationProblem(specs, menu, errors, nbytes, np.ones(16))
    constraints = Constraints(groups=(Group(("up",), agree="b_q", experts="together"),))
    with pytest.raises(ConfigError, match=r"group of 0\.up\.0.*and 8 more.*let it agree on config"):
        optimal_allocation(problem, 10**12, constraints=constraints)
