"""Sensitivities of configs with and without a low-rank part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    KLAnchor,
    class_sensitivities,
    estimate_sensitivities,
    optimal_allocation,
)
from compress_core.matrix import MatrixKey

Q, K = MatrixKey(0, "q"), MatrixKey(1, "q")


def anchor(key: MatrixKey, error: float, kl: float, *, rank: int) -> KLAnchor:
    return KLAnchor(key, error, kl, low_rank=rank > 0)


def test_each_class_is_judged_by_its_own_anchors() -> None:
    anchors = [
        anchor(Q, 0.1, 0.2, rank=0),
        anchor(Q, 0.05, 0.2, rank=8),
        anchor(K, 0.1, 0.3, rank=0),
        anchor(K, 0.05, 0.3, rank=8),
    ]
    found = class_sensitivities(anchors, shrink=False)
    assert {key: s.value for key, s in found["rank0"].items()} == pytest.approx({Q: 2.0, K: 3.0})
    assert {key: s.value for key, s in found["low_rank"].items()} == pytest.approx({Q: 4.0, K: 6.0})
    assert found["all"] == estimate_sensitivities(anchors, shrink=False)


def test_a_class_or_a_matrix_without_anchors_is_left_to_all_there_are() -> None:
    only = [anchor(Q, 0.1, 0.2, rank=0), anchor(Q, 0.1, 0.8, rank=0), anchor(K, 0.1, 0.3, rank=0)]
    assert class_sensitivities(only) == {"all": estimate_sensitivities(only)}
    mixed = class_sensitivities([*only, anchor(Q, 0.05, 0.2, rank=4)], shrink=False)
    assert {key: s.value for key, s in mixed["low_rank"].items()} == pytest.approx({Q: 4.0})
    # an anchor that changed nothing says nothing of its class
    assert set(class_sensitivities([*only, anchor(Q, 0.0, 0.0, rank=4)])) == {"all"}


def test_a_problem_may_weigh_every_cell(small_problem: AllocationProblem) -> None:
    n, k = small_problem.errors.shape
    budget = int(small_problem.nbytes.mean(axis=1).sum())
    a_ij = np.repeat(small_problem.weights[:, None], k, axis=1)
    every = replace(small_problem, weights=a_ij)
    np.testing.assert_array_equal(every.objective_table, small_problem.objective_table)
    before = optimal_allocation(small_problem, budget)
    assert optimal_allocation(every, budget).configs == before.configs
    # what a class of cells costs more, the optimum has less of
    ranks = np.array([config.rank for config in small_problem.menu])
    dear = optimal_allocation(replace(small_problem, weights=np.where(ranks > 0, 1e6 * a_ij, a_ij)), budget)
    assert all(config.rank == 0 for config in dear.configs.values())
    assert any(config.rank > 0 for config in before.configs.values())
    assert n > 1
