"""Sensitivities of configs with and without a low-rank part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress_core.allocate import AllocationProblem, KLAnchor, estimate_sensitivities, optimal_allocation
from compress_core.allocate.anchor_classes import estimate_by_class
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import MatrixKey, MatrixSpec

Q, K = MatrixKey(0, "q"), MatrixKey(1, "q")


def test_each_class_is_judged_by_its_own_anchors() -> None:
    anchors = [
        (KLAnchor(Q, 0.1, 0.2), 0),
        (KLAnchor(Q, 0.05, 0.2), 8),
        (KLAnchor(K, 0.1, 0.3), 0),
        (KLAnchor(K, 0.05, 0.3), 8),
    ]
    found = estimate_by_class(anchors, shrink=False)
    assert found.rank0[Q].value == pytest.approx(2.0)
    assert found.low_rank[Q].value == pytest.approx(4.0)
    assert found.rank0[K].value == pytest.approx(3.0)
    assert found.low_rank[K].value == pytest.approx(6.0)


def test_a_class_or_a_matrix_without_anchors_takes_all_there_are() -> None:
    only = [(KLAnchor(Q, 0.1, 0.2), 0), (KLAnchor(Q, 0.1, 0.8), 0), (KLAnchor(K, 0.1, 0.3), 0)]
    found = estimate_by_class(only)
    everything = estimate_sensitivities([anchor for anchor, _ in only])
    assert found.low_rank == everything == found.rank0
    mixed = estimate_by_class([*only, (KLAnchor(Q, 0.05, 0.2), 4)], shrink=False)
    assert mixed.low_rank[Q].value == pytest.approx(4.0)
    assert mixed.low_rank[K] == found.low_rank[K]
    # an anchor that changed nothing says nothing of its class
    silent = estimate_by_class([*only, (KLAnchor(Q, 0.0, 0.0), 4)], shrink=False)
    assert silent.low_rank[Q].value == pytest.approx(0.4**0.5 * 10 * 0.4**0.5)


def test_weights_follow_the_rank_of_the_config() -> None:
    specs = [MatrixSpec(key, 16, 16, "a.weight") for key in (Q, K)]
    menu = [CompressionConfig(b_q=2, rank=0), CompressionConfig(b_q=2, rank=4), CompressionConfig(b_q=3, rank=0)]
    found = estimate_by_class(
        [(KLAnchor(key, 0.1, kl), rank) for key, kl in ((Q, 0.1), (K, 0.2)) for rank, kl in ((0, kl), (4, 5 * kl))],
        shrink=False,
    )
    np.testing.assert_allclose(found.weights(specs, menu), [[1, 5, 1], [2, 10, 2]])
    with pytest.raises(ConfigError, match=r"no sensitivity for matrix 2\.q"):
        found.weights([*specs, MatrixSpec(MatrixKey(2, "q"), 16, 16, "b.weight")], menu)


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
