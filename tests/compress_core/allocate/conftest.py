"""Instances and rival solvers for the allocation tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.allocation.highs import solve_with_highs
from compress_core.allocate import AllocationProblem, Cell
from compress_core.config import CompressionConfig
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

Table = tuple[NDArray[np.float64], NDArray[np.int64], int]


def brute_force(errors: NDArray[np.float64], nbytes: NDArray[np.int64], budget: int) -> float:
    """The least objective over every combination; inf where none fits."""
    best = np.inf
    for choice in itertools.product(*[np.flatnonzero(np.isfinite(row)) for row in errors]):
        if sum(int(nbytes[i, j]) for i, j in enumerate(choice)) <= budget:
            best = min(best, sum(float(errors[i, j]) for i, j in enumerate(choice)))
    return best


def highs(errors: NDArray[np.float64], nbytes: NDArray[np.int64], budget: int) -> float:
    """Objective of scipy's HiGHS at gap 0, its cap tightened until its choice truly fits; inf where infeasible."""
    return solve_with_highs(errors, nbytes, budget).objective


def model_like(n: int, bits: tuple[int, ...], ranks: tuple[int, ...], seed: int, fraction: float) -> Table:
    """Errors and bytes as a decoder of hidden size 512 has them, with noise; budget between smallest and largest."""
    rng = np.random.default_rng(seed)
    shapes = ((512, 512), (128, 512), (128, 512), (512, 512), (1376, 512), (1376, 512), (512, 1376))
    configs = [(b, r) for b in bits for r in ranks]
    errors = np.empty((n, len(configs)))
    nbytes = np.empty((n, len(configs)), dtype=np.int64)
    for i in range(n):
        out, in_ = shapes[i % 7]
        scale, slope, share = np.exp(1.2 * rng.normal()), 1.9 + 0.2 * rng.normal(), rng.uniform(0.2, 0.5)
        for j, (b, r) in enumerate(configs):
            captured = share * np.log1p(r) / np.log1p(256)
            errors[i, j] = scale * 2 ** (-slope * b) * (1 - captured) * np.exp(0.1 * rng.normal())
            nbytes[i, j] = out * in_ * b // 8 + 2 * out + r * (out + in_) // 2 + (4 * r)
    low, high = int(nbytes.min(axis=1).sum()), int(nbytes.max(axis=1).sum())
    return errors, nbytes, int(low + fraction * (high - low))


@pytest.fixture(scope="session")
def solve_by_brute_force() -> Callable[..., float]:
    return brute_force


@pytest.fixture(scope="session")
def solve_by_highs() -> Callable[..., float]:
    return highs


@pytest.fixture(scope="session")
def make_instance() -> Callable[..., Table]:
    return model_like


@pytest.fixture
def small_problem() -> AllocationProblem:
    """Four layers of seven matrices and six configs; k and v are too small for the largest rank."""
    rng = np.random.default_rng(7)
    shapes = {
        "q": (64, 64),
        "k": (16, 64),
        "v": (16, 64),
        "o": (64, 64),
        "gate": (96, 64),
        "up": (96, 64),
        "down": (64, 96),
    }
    specs = tuple(
        MatrixSpec(MatrixKey(layer, p), *shapes[p], tensor_name=f"layers.{layer}.{p}")
        for layer in range(4)
        for p in PROJECTIONS
    )
    menu = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 32))
    cells = {}
    weights = {}
    for spec in specs:
        scale = np.exp(rng.normal())
        weights[spec.key] = float(np.exp(rng.normal() + 1.5 * (spec.key.layer_idx == 0)))
        for config in menu:
            c = config.clamped(spec.out_features, spec.in_features)
            error = scale * (2.0 ** (-2 * c.b_q) * 0.9 + 0.1 * (c.rank + 1) ** -0.5 * 2.0**-c.b_q)
            nbytes = (
                spec.n_weights * c.b_q // 8
                + 2 * spec.out_features
                + c.rank * (spec.out_features + spec.in_features) // 2
            )
            cells[spec.key, c.config_hash] = Cell(float(error), nbytes)
    return AllocationProblem.from_cells(specs, menu, cells, weights=weights, fixed_bytes=50_000)
