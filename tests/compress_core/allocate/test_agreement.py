"""The exact solver against scipy's HiGHS at gap 0: a part of ``python -m benchmarks.allocate --thousand``."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.allocation.agreement import Agreement, agreement_table, compare
from benchmarks.allocation.highs import solve_with_highs
from benchmarks.allocation.instances import FAMILIES, SMALL, Instance, small_instance

EACH = 12


@pytest.mark.parametrize("family", list(FAMILIES))
def test_same_verdict_within_the_budget_and_at_most_the_objective_of_highs(family: str) -> None:
    first = list(FAMILIES).index(family)
    instances = [small_instance(first + i * len(FAMILIES)) for i in range(EACH)]
    assert all(i.family == family and len(i.errors) <= SMALL for i in instances)
    found = [compare(i) for i in instances]
    assert all(a.proven for a in found)
    assert [a for a in found if not a.holds] == []
    # HiGHS must not be worse either, or the comparison would show nothing
    assert [a for a in found if a.difference < -1e-6] == []


def test_both_verdicts_are_tried() -> None:
    edge = [small_instance(8 + 10 * i) for i in range(EACH)]
    assert {math.isfinite(solve_with_highs(i.errors, i.nbytes, i.budget).objective) for i in edge} == {True, False}


def test_the_families_are_what_they_say() -> None:
    by_name = {name: [small_instance(j + 10 * i) for i in range(EACH)] for j, name in enumerate(FAMILIES)}
    assert any(np.isinf(i.errors).any() for i in by_name["unavailable options"])
    assert all(i.errors.min() < 0 for i in by_name["errors below 0"] if i.errors.size > 40)
    assert max(i.nbytes.max() for i in by_name["huge bytes"]) > 10**13
    assert any((np.diff(i.errors, axis=1) > 0).any() for i in by_name["30 % noise"])
    assert any((i.nbytes == i.nbytes[:, :1]).all(axis=1).any() for i in by_name["equal bytes"])
    assert any(len(np.unique(i.errors)) < i.errors.size for i in by_name["ties"])


def test_a_wrong_answer_is_seen() -> None:
    good = Agreement("x", 1.0, 1.0, 0, True, 0.1, 0.1, 0)
    assert good.holds
    assert not replace(good, ours=1.0 + 2e-9).holds
    assert not replace(good, unused=-1).holds
    assert not replace(good, unused=None, ours=math.inf).holds
    assert not replace(good, highs=math.inf).holds
    assert replace(good, highs=math.inf, unused=None, ours=math.inf).holds
    assert not replace(good, ours=-1.0 + 2e-9, highs=-1.0).holds
    assert not replace(good, ours=1e-12, highs=0.0).holds
    table = agreement_table([good, replace(good, unused=-1)])
    assert table[-1].startswith("| **all** | 2 | 2 | 2 | 1 | 1 |")


def test_the_rival_keeps_to_the_byte_where_its_tolerance_would_not() -> None:
    """A millionth of the room over the budget is within HiGHS's tolerance; the tightened cap excludes it."""
    errors = np.array([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    nbytes = np.array([[0, 10**9, 5 * 10**9 + 400], [0, 10**9, 5 * 10**9 + 400]])
    instance = Instance("tolerance", errors, nbytes, 10**10 + 799)
    rival = solve_with_highs(instance.errors, instance.nbytes, instance.budget)
    assert rival.tightened > 0
    assert rival.choice is not None
    assert nbytes[[0, 1], rival.choice].sum() <= instance.budget
    assert rival.objective == 0.5
    assert compare(instance).holds
