"""Allocation: which config for which matrix, under a byte budget. Needs numpy and scipy only."""

from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import lagrangian_bound, solve_allocation

__all__ = ["AllocationSolution", "lagrangian_bound", "solve_allocation"]
