"""Does the exact solver agree with HiGHS? One instance at a time, and a thousand in a table."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.allocation.highs import solve_with_highs
from benchmarks.allocation.instances import Instance
from compress_core.allocate import solve_allocation
from compress_core.errors import InfeasibleBudget

#: ours ≤ HiGHS's by this relative margin
MARGIN = 1e-9


@dataclass(frozen=True)
class Agreement:
    """What both say of one instance."""

    family: str
    ours: float
    highs: float
    #: bytes of our choice below the budget; None where ours finds it infeasible
    unused: int | None
    proven: bool
    ours_s: float
    highs_s: float
    tightened: int

    @property
    def feasible(self) -> bool:
        return self.unused is not None

    @property
    def same_verdict(self) -> bool:
        return self.feasible == math.isfinite(self.highs)

    @property
    def difference(self) -> float:
        """Ours relative to HiGHS's, negative where ours is better; 0 where both are infeasible."""
        if not self.same_verdict:
            return math.inf
        if not self.feasible or self.ours == self.highs:
            return 0.0
        return (self.ours - self.highs) / abs(self.highs) if self.highs else math.copysign(math.inf, self.ours)

    @property
    def holds(self) -> bool:
        """Same verdict, bytes within the budget, and an objective that is not above HiGHS's."""
        if not self.same_verdict or not self.feasible:
            return self.same_verdict
        assert self.unused is not None
        return self.unused >= 0 and self.ours <= self.highs + MARGIN * abs(self.highs)


def compare(instance: Instance) -> Agreement:
    """Solve one instance both ways. Our bytes and objective are added up here again, from the choice."""
    rival = solve_with_highs(instance.errors, instance.nbytes, instance.budget)
    began = time.perf_counter()
    try:
        solution = solve_allocation(instance.errors, instance.nbytes, instance.budget)
    except InfeasibleBudget:
        seconds = time.perf_counter() - began
        return Agreement(
            instance.family, math.inf, rival.objective, None, True, seconds, rival.seconds, rival.tightened
        )
    seconds = time.perf_counter() - began
    rows = np.arange(len(instance.errors))
    ours = math.fsum(instance.errors[rows, solution.choice])
    unused = instance.budget - int(instance.nbytes[rows, solution.choice].sum())
    return Agreement(
        instance.family, ours, rival.objective, unused, solution.optimal, seconds, rival.seconds, rival.tightened
    )


def agreement_table(found: Iterable[Agreement]) -> list[str]:
    """Markdown: one line a family."""
    found = list(found)
    lines = [
        "| family | instances | feasible | same verdict | within the budget | at most HiGHS·(1 + 1e-9) "
        "| largest objective above HiGHS | below HiGHS by over 1e-9 | HiGHS's cap tightened | proven "
        "| ours, s in all | HiGHS, s in all |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    families = list(dict.fromkeys(a.family for a in found))
    groups = [(family, [a for a in found if a.family == family]) for family in families]
    for name, group in [*groups, ("**all**", found)]:
        feasible = [a for a in group if a.feasible]
        worst = max((a.difference for a in feasible), default=0.0)
        lines.append(
            f"| {name} | {len(group):,} | {len(feasible):,} | {sum(a.same_verdict for a in group):,} "
            f"| {sum((a.unused or 0) >= 0 for a in feasible):,} | {sum(a.holds for a in feasible):,} | {worst:+.1e} "
            f"| {sum(a.difference < -MARGIN for a in feasible)} | {sum(a.tightened > 0 for a in group)} "
            f"| {sum(a.proven for a in group):,} "
            f"| {sum(a.ours_s for a in group):.1f} | {sum(a.highs_s for a in group):.1f} |"
        )
    return lines
