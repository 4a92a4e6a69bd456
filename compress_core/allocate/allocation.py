"""Allocation: one config per matrix, whoever chose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress_core.allocate.problem import AllocationProblem
from compress_core.allocate.solution import AllocationSolution
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.grid import is_uniform
from compress_core.matrix import MatrixKey, MatrixSpec


@dataclass(frozen=True, slots=True)
class AllocationItem:
    """The choice for one matrix."""

    spec: MatrixSpec
    #: the config that the matrix gets: rank clamped to the matrix
    config: CompressionConfig
    #: the config as the menu has it; differs from ``config`` where the rank was clamped
    menu_config: CompressionConfig
    nbytes: int
    #: ε of this choice, unweighted
    error: float
    #: a_i·ε, this matrix's share of the objective
    weighted_error: float

    @property
    def key(self) -> MatrixKey:
        return self.spec.key

    @property
    def clamped(self) -> bool:
        return self.config.rank != self.menu_config.rank


@dataclass(frozen=True, eq=False)
class Allocation:
    """One config per matrix, with its bytes and objective; ``solution`` is the certificate of an optimal one."""

    #: "optimal", "uniform", "manual", or the name of another baseline
    kind: str
    items: tuple[AllocationItem, ...]
    #: bytes allowed for the matrices; None where no budget was in play
    budget_bytes: int | None = None
    solution: AllocationSolution | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of the matrices (scope ``decoder``)."""
        return sum(item.nbytes for item in self.items)

    @property
    def objective(self) -> float:
        return math.fsum(item.weighted_error for item in self.items)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total_bytes / sum(item.spec.n_weights for item in self.items)

    @property
    def configs(self) -> dict[MatrixKey, CompressionConfig]:
        return {item.key: item.config for item in self.items}

    @property
    def is_uniform(self) -> bool:
        """True where one config, its rank clamped per matrix, explains every item."""
        return is_uniform({item.spec: item.config for item in self.items})

    def counts(self) -> dict[CompressionConfig, int]:
        """How many matrices have each menu config, most frequent first."""
        tally: dict[CompressionConfig, int] = {}
        for item in self.items:
            tally[item.menu_config] = tally.get(item.menu_config, 0) + 1
        return dict(sorted(tally.items(), key=lambda pair: (-pair[1], str(pair[0]))))


def allocation_from_choice(
    problem: AllocationProblem,
    choice: Sequence[int] | np.ndarray,
    *,
    kind: str,
    budget_bytes: int | None = None,
    solution: AllocationSolution | None = None,
) -> Allocation:
    """Name a choice of columns.

    Raises:
        ConfigError: a chosen cell is not available.
    """
    table = problem.objective_table
    items = []
    for i, spec in enumerate(problem.specs):
        j = int(choice[i])
        if not np.isfinite(problem.errors[i, j]):
            raise ConfigError(f"matrix {spec.key} has no error for {problem.menu[j]}: measure or fit it first")
        items.append(
            AllocationItem(
                spec=spec,
                config=problem.config_of(i, j),
                menu_config=problem.menu[j],
                nbytes=int(problem.nbytes[i, j]),
                error=float(problem.errors[i, j]),
                weighted_error=float(table[i, j]),
            )
        )
    return Allocation(kind, tuple(items), budget_bytes, solution)
