"""What other tools' ways to choose lose against the optimum, on the same tables at the same budgets."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocation.instances import Instance, model_like
from benchmarks.allocation.speed import FRACTIONS, NOISES, SEEDS
from compress_core.allocate import solve_allocation
from compress_core.allocate.baselines import discretised_dp_choice, greedy_choice, minimax_choice
from compress_core.allocate.random_draw import DrawTable, draw_choice

#: a model of 4 layers, and one of 80
SIZES = ((28, 15), (560, 27))
N_RANDOM = 20
_WITHIN = 0.005


@dataclass(frozen=True)
class Peer:
    """On instances of one size. ``losses``: objective above the optimum, relative, one an instance."""

    name: str
    losses: tuple[float, ...]
    #: one an instance, as are the following
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


def measure_peers(n: int, k: int) -> list[Peer]:
    """Every peer on every instance of a size; "random": the mean of 20 draws within 0.5 % below the budget."""
    instances = [model_like(n, k, s, f, noise=noise) for noise in NOISES for s in SEEDS for f in FRACTIONS]
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
        rows = np.arange(len(instance.errors))
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


def peers_table(found: Mapping[tuple[int, int], Sequence[Peer]]) -> list[str]:
    """Markdown: one line a peer, three columns a size."""
    sizes = [f"{n} × {k}" for n, k in found]
    head = [f"{size}: objective above the optimum, median (range) | budget unused | seconds" for size in sizes]
    lines = [f"| way to choose | {' | '.join(head)} |", "|---" * (1 + 3 * len(sizes)) + "|"]
    for same in zip(*found.values(), strict=True):
        cells = [
            f"{_percent(statistics.median(p.losses))} ({_percent(min(p.losses))} – {_percent(max(p.losses))}) "
            f"| {statistics.median(p.unused):.1e} | {statistics.median(p.seconds):.3f}"
            for p in same
        ]
        lines.append(f"| {same[0].name} | {' | '.join(cells)} |")
    return lines


def _percent(loss: float) -> str:
    value = 100 * loss
    return f"+{value:.4f} %" if abs(value) < 0.01 else f"+{value:.2f} %" if abs(value) < 10 else f"+{value:.0f} %"
