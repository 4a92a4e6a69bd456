"""What other tools' ways to choose lose against the optimum, on the same tables at the same budgets."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocation.instances import Instance, model_like
from benchmarks.allocation.speed import FRACTIONS, NOISES, SEEDS
from compress_core.allocate import solve_allocation
from compress_core.allocate.baselines import discretised_dp_choice, greedy_choice, minimax_choice
from compress_core.allocate.random_draw import DrawTable, draw_choice

N, K = 560, 27
N_RANDOM = 20
_WITHIN = 0.005


@dataclass(frozen=True)
class Peer:
    """``losses``: objective above the optimum, relative, one an instance; ``seconds`` likewise."""

    name: str
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    #: share of the budget left unused
    unused: tuple[float, ...]


def best_uniform_column(errors: NDArray[np.float64], nbytes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """The one column of least objective that fits."""
    fits = nbytes.sum(axis=0) <= budget
    column = int(np.where(fits, errors.sum(axis=0), np.inf).argmin())
    return np.full(len(errors), column)


PEERS: tuple[tuple[str, Callable[..., NDArray[np.int64]]], ...] = (
    ("greedy, best ratio with look-ahead (exllamav3's idea without its exponent)", greedy_choice),
    ("discretised DP, 10,000 buckets", partial(discretised_dp_choice, buckets=10_000)),
    ("discretised DP, 1,000 buckets (the plan's)", discretised_dp_choice),
    ("minimax threshold (ModelOpt's KL mode, mlx-lm)", minimax_choice),
    ("best uniform", best_uniform_column),
)


def measure_peers() -> list[Peer]:
    """Every peer on every instance; "random" is the mean of 20 random allocations within 0.5 % below the budget."""
    instances = [model_like(N, K, s, f, noise=noise) for noise in NOISES for s in SEEDS for f in FRACTIONS]
    optima = [solve_allocation(i.errors, i.nbytes, i.budget).objective for i in instances]
    found = []
    for name, choose in PEERS:
        losses, seconds, unused = [], [], []
        for instance, optimum in zip(instances, optima, strict=True):
            began = time.perf_counter()
            choice = choose(instance.errors, instance.nbytes, instance.budget)
            seconds.append(time.perf_counter() - began)
            value, left = _value(instance, choice)
            losses.append(value / optimum - 1)
            unused.append(left)
        found.append(Peer(name, tuple(losses), tuple(seconds), tuple(unused)))
    return [*found, _random(instances, optima)]


def _value(instance: Instance, choice: NDArray[np.int64]) -> tuple[float, float]:
    """Objective, and share of the budget that is left."""
    rows = np.arange(len(choice))
    left = instance.budget - int(instance.nbytes[rows, choice].sum())
    if left < 0:
        raise RuntimeError(f"a choice exceeds its budget by {-left:,} bytes")
    return math.fsum(instance.errors[rows, choice]), left / instance.budget


def _random(instances: list[Instance], optima: list[float]) -> Peer:
    losses, seconds, unused = [], [], []
    for instance, optimum in zip(instances, optima, strict=True):
        rows = np.arange(N)
        table = DrawTable(instance.nbytes, np.isfinite(instance.errors), rows // 7, rows % 7)
        lowest = instance.budget - int(_WITHIN * instance.budget)
        values = []
        began = time.perf_counter()
        for draw in range(N_RANDOM):
            choice = draw_choice(table, lowest, instance.budget, np.random.default_rng(draw))
            if choice is None:
                raise RuntimeError("no random choice was found within the band")
            values.append(_value(instance, choice))
        seconds.append((time.perf_counter() - began) / N_RANDOM)
        losses.append(statistics.mean(v for v, _ in values) / optimum - 1)
        unused.append(statistics.mean(left for _, left in values))
    return Peer(f"random (mean of {N_RANDOM})", tuple(losses), tuple(seconds), tuple(unused))


def peers_table(found: list[Peer]) -> list[str]:
    """Markdown: one line a peer."""
    lines = [
        "| way to choose | objective above the optimum: median (range) | budget unused: median | seconds: median |",
        "|---|---|---|---|",
    ]
    for peer in found:
        losses = [100 * loss for loss in peer.losses]
        lines.append(
            f"| {peer.name} | {_percent(statistics.median(losses))} ({_percent(min(losses))} – "
            f"{_percent(max(losses))}) "
            f"| {statistics.median(peer.unused):.1e} | {statistics.median(peer.seconds):.2f} |"
        )
    return lines


def _percent(value: float) -> str:
    return f"+{value:.4f} %" if abs(value) < 0.01 else f"+{value:.2f} %" if abs(value) < 10 else f"+{value:.0f} %"
