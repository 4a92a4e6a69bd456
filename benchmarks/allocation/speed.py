"""How long the exact solver takes, beside HiGHS in the same run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.allocation.highs import HighsSolution, solve_with_highs
from benchmarks.allocation.instances import model_like
from compress_core.allocate import AllocationSolution, solve_allocation

SIZES = ((224, 15), (560, 15), (560, 27))
SEEDS = (0, 1, 2)
#: budget between the smallest and the largest allocation
FRACTIONS = (0.3, 0.6)
NOISES = (0.02, 0.3)
REPEATS = 5


@dataclass(frozen=True)
class Timing:
    n: int
    k: int
    ours_s: float
    ours_cpu_s: float
    solution: AllocationSolution
    rival: HighsSolution

    @property
    def ratio(self) -> float:
        return self.rival.seconds / self.ours_s

    @property
    def difference(self) -> float:
        """Our objective relative to HiGHS's; negative is better."""
        return self.solution.objective / self.rival.objective - 1


def measure_speed() -> list[Timing]:
    found = []
    for n, k in SIZES:
        for noise in NOISES:
            for seed in SEEDS:
                for fraction in FRACTIONS:
                    table = model_like(n, k, seed, fraction, noise=noise)
                    times, cpu = [], []
                    for _ in range(REPEATS):
                        began, began_cpu = time.perf_counter(), time.process_time()
                        solution = solve_allocation(table.errors, table.nbytes, table.budget)
                        times.append(time.perf_counter() - began)
                        cpu.append(time.process_time() - began_cpu)
                    rival = solve_with_highs(table.errors, table.nbytes, table.budget)
                    found.append(Timing(n, k, statistics.median(times), statistics.median(cpu), solution, rival))
    return found


def speed_table(found: list[Timing]) -> list[str]:
    """Markdown: one line a size."""
    lines = [
        "| n × k | instances | ours, ms: median (range) | the same, CPU ms | HiGHS, s: median (range) "
        "| HiGHS / ours: median (least) | proven | largest objective above HiGHS | relative dual gap | peak states |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n, k in SIZES:
        group = [t for t in found if (t.n, t.k) == (n, k)]
        ours, cpu = [1e3 * t.ours_s for t in group], [1e3 * t.ours_cpu_s for t in group]
        highs, speed = [t.rival.seconds for t in group], [t.ratio for t in group]
        gaps = np.array([t.solution.relative_gap for t in group])
        lines.append(
            f"| {n} × {k} | {len(group)} "
            f"| {statistics.median(ours):.0f} ({min(ours):.0f} – {max(ours):.0f}) "
            f"| {statistics.median(cpu):.0f} ({min(cpu):.0f} – {max(cpu):.0f}) "
            f"| {statistics.median(highs):.2f} ({min(highs):.2f} – {max(highs):.2f}) "
            f"| {statistics.median(speed):.0f}× ({min(speed):.0f}×) "
            f"| {sum(t.solution.optimal for t in group)} of {len(group)} "
            f"| {max(t.difference for t in group):+.1e} "
            f"| {gaps.min():.1e} – {gaps.max():.1e} | {max(t.solution.peak_states for t in group):,} |"
        )
    return lines
