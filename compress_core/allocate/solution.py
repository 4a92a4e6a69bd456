"""AllocationSolution: one option per matrix, with what proves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.allocate.set_bound import Prices


@dataclass(frozen=True, eq=False, slots=True)
class AllocationSolution:
    """Choice of one column per row of an error table under a byte budget, and its certificate.

    The certificate: ``total_bytes`` ≤ ``budget`` is checked by adding up; ``lower_bound`` is the Lagrangian bound
    Σ_i min_k (e_ik + λ·w_ik) − λ·budget at λ = ``multiplier``, which no feasible choice can beat and which anyone can
    recompute in O(n·k) (``lagrangian_bound``). ``gap`` is what is left between the two. Where ``optimal`` is true the
    gap was closed by enumeration: no choice has an objective below ``objective`` by more than ``tolerance``.
    """

    #: (n,) int64: the chosen column of each row
    choice: NDArray[np.int64]
    total_bytes: int
    budget: int
    #: Σ errors of the choice, correctly rounded
    objective: float
    lower_bound: float
    #: objective − lower_bound ≥ 0
    gap: float
    #: proven: by a met bound, or by an exhausted core
    optimal: bool
    #: "slack budget", "bound met", "core exhausted", "column sets exhausted", or "work limit reached" (then ``optimal``
    #: is false)
    proof: str
    #: shadow price λ ≥ 0: objective saved per further byte, at the margin (under at most m configs: with the same ones)
    multiplier: float
    #: the proof is exact on errors rounded to int64; in objective units this is what the rounding can hide
    tolerance: float
    #: matrices whose option the bound alone does not settle
    core_size: int
    #: largest list of states, and all states that the enumeration made
    peak_states: int
    total_states: int
    #: under at most m configs: what proves ``lower_bound`` in place of λ alone (``set_bound``)
    prices: Prices | None = None
    #: column sets that were branched on
    n_sets: int = 0

    @property
    def relative_gap(self) -> float:
        """gap / |objective|; 0 where both are 0."""
        return self.gap / abs(self.objective) if self.objective else float(self.gap > 0)

    @property
    def unused_bytes(self) -> int:
        return self.budget - self.total_bytes

    @property
    def slack(self) -> bool:
        """True where the budget binds nothing: every matrix has its smallest error."""
        return self.proof == "slack budget"
