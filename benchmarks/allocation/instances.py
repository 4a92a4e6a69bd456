"""Random allocation tables, by seed: what the exact solver is tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

#: most rows of a small instance
SMALL = 40
#: (out, in) of the projections of one layer of Llama-2-70B
_SHAPES = (
    (8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672),
)  # fmt: skip

Table = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Instance:
    """Errors (n, k) float64 with inf where an option is not available, bytes (n, k) int64, and a budget."""

    family: str
    errors: NDArray[np.float64]
    nbytes: NDArray[np.int64]
    budget: int


def smallest_and_largest(errors: NDArray[np.float64], nbytes: NDArray[np.int64]) -> tuple[int, int]:
    """Bytes of the smallest and of the largest choice."""
    available = np.isfinite(errors)
    low = np.where(available, nbytes, np.iinfo(np.int64).max).min(axis=1).sum()
    return int(low), int(np.where(available, nbytes, 0).max(axis=1).sum())


def model_like(n: int, k: int, seed: int, fraction: float, *, noise: float = 0.02) -> Instance:
    """Shapes of Llama-2-70B, log-normal scales (sigma 1.2), bits 2, 3, 4 × ranks 0, 32, 64, 128, 256.

    With 27 options also 4- or 16-bit factors. Errors carry relative noise (at 0.3 they are not monotone); bytes count
    packed codes, fp16 row scales and factors. The budget lies at ``fraction`` between smallest and largest choice.
    """
    rng = np.random.default_rng(seed)
    factor_bits = (4, 16) if k == 27 else (4,)
    configs = [(b, r, f) for b in (2, 3, 4) for r in (0, 32, 64, 128, 256) for f in (factor_bits if r else (4,))]
    assert len(configs) == k
    errors, nbytes = np.empty((n, k)), np.empty((n, k), dtype=np.int64)
    for i in range(n):
        out, in_ = _SHAPES[i % 7]
        scale, slope = np.exp(1.2 * rng.normal()), 2 + 0.2 * rng.normal()
        for j, (b, r, f) in enumerate(configs):
            captured = 0.4 * np.log1p(r) / np.log1p(256) * (1.0 if f == 16 else 0.8)
            errors[i, j] = scale * 2 ** (-slope * b) * (1 - captured) * np.exp(noise * rng.normal())
            nbytes[i, j] = out * in_ * b // 8 + 2 * out + r * (out + in_) * f // 8 + 4 * r
    low, high = smallest_and_largest(errors, nbytes)
    return Instance("model-like" if noise < 0.1 else "noisy model", errors, nbytes, int(low + fraction * (high - low)))


def _shape(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(1, SMALL + 1)), int(rng.integers(2, 13))


def _falling(rng: np.random.Generator) -> Table:
    """Options in order: more bytes, less error, as measured tables mostly are."""
    n, k = _shape(rng)
    scale = rng.lognormal(0, 1.2, (n, 1))
    errors = scale * np.exp(-np.cumsum(rng.uniform(0.1, 1.5, (n, k)), axis=1))
    nbytes = np.cumsum(rng.integers(1, 100_000, (n, k)), axis=1) * rng.integers(1, 20, (n, 1))
    return errors, nbytes


def _noisy(rng: np.random.Generator) -> Table:
    """The same with 30 % noise: not monotone, with options that others dominate."""
    errors, nbytes = _falling(rng)
    return errors * np.exp(0.3 * rng.normal(size=errors.shape)), nbytes


def _unordered(rng: np.random.Generator) -> Table:
    """No order between bytes and errors, which spread over many decades."""
    n, k = _shape(rng)
    return rng.lognormal(0, 3, (n, k)), rng.integers(0, 10 ** int(rng.integers(2, 8)), (n, k))


def _ties(rng: np.random.Generator) -> Table:
    """Few distinct errors and few distinct bytes: many choices are equally good."""
    n, k = _shape(rng)
    return rng.integers(0, 6, (n, k)).astype(float), 64 * rng.integers(0, 8, (n, k))


def _holes(rng: np.random.Generator) -> Table:
    """Three in ten options are not available."""
    errors, nbytes = _noisy(rng)
    errors[:, 1:][rng.random((len(errors), errors.shape[1] - 1)) < 0.3] = np.inf
    return errors, nbytes


def _equal_bytes(rng: np.random.Generator) -> Table:
    """Rows whose options all take the same bytes, and options of one row that do."""
    n, k = _shape(rng)
    levels = rng.integers(1, 10**6, (n, 3))
    nbytes = np.take_along_axis(levels, rng.integers(0, 3, (n, k)), axis=1)
    nbytes[rng.random(n) < 0.3] = 4096
    return rng.random((n, k)), nbytes


def _huge_bytes(rng: np.random.Generator) -> Table:
    """Up to 2·10¹⁴ bytes an option, odd numbers: nothing a float row can hold exactly."""
    errors, nbytes = _noisy(rng)
    return errors, nbytes * (10**14 // int(nbytes.max())) + rng.integers(0, 1000, nbytes.shape)


def _below_zero(rng: np.random.Generator) -> Table:
    """Noisy estimates of small errors: some are negative."""
    errors, nbytes = _falling(rng)
    return errors + 0.1 * rng.normal(size=errors.shape), nbytes


def _somewhere(rng: np.random.Generator, low: int, high: int) -> int:
    return low + int(rng.uniform(0.02, 0.95) * (high - low))


def _at_the_edge(rng: np.random.Generator, low: int, high: int) -> int:
    """Around the smallest choice: half of these budgets fit nothing, some by a single byte."""
    below = (low - 1, int(low * rng.uniform(0.2, 0.999)), low - int(low * 1e-7) - 1)
    above = (low, low + 1, low + int(0.02 * (high - low)))
    return int(max(0, (below if rng.random() < 0.5 else above)[rng.integers(3)]))


def _near_slack(rng: np.random.Generator, low: int, high: int) -> int:
    """Around the largest choice: the budget binds hardly or not at all."""
    return int(high + (-1, 0, 10, -int(0.01 * (high - low)))[rng.integers(4)])


#: name -> (tables, budgets)
FAMILIES: Mapping[
    str, tuple[Callable[[np.random.Generator], Table], Callable[[np.random.Generator, int, int], int]]
] = MappingProxyType(
    {
        "falling errors": (_falling, _somewhere),
        "30 % noise": (_noisy, _somewhere),
        "no order": (_unordered, _somewhere),
        "ties": (_ties, _somewhere),
        "unavailable options": (_holes, _somewhere),
        "equal bytes": (_equal_bytes, _somewhere),
        "huge bytes": (_huge_bytes, _somewhere),
        "errors below 0": (_below_zero, _somewhere),
        "edge of feasibility": (_holes, _at_the_edge),
        "nearly slack": (_noisy, _near_slack),
    }
)


def small_instance(seed: int) -> Instance:
    """Instance number ``seed``, n ≤ 40; the families take turns."""
    family = list(FAMILIES)[seed % len(FAMILIES)]
    table, budget = FAMILIES[family]
    rng = np.random.default_rng([seed, 7])
    errors, nbytes = table(rng)
    return Instance(family, errors, nbytes, budget(rng, *smallest_and_largest(errors, nbytes)))


def large_instance(number: int) -> Instance:
    """560 × 27, numbers 0 … 19: ten seeds, at 30 and 60 % of the way to the largest choice, every other one noisy."""
    seed, half = divmod(number, 2)
    return model_like(560, 27, 100 + seed, (0.3, 0.6)[half], noise=(0.02, 0.3)[seed % 2])
