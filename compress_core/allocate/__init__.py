"""Allocation: which config for which matrix, under a byte budget. Needs numpy, scipy and yaml only."""

from compress_core.allocate.allocation import Allocation, AllocationItem, allocation_from_choice
from compress_core.allocate.budget import Budget
from compress_core.allocate.manual import ManualRecipe, layer_sensitivities, manual_allocation
from compress_core.allocate.optimal import optimal_allocation
from compress_core.allocate.overrides import overrides_from_yaml, overrides_to_yaml
from compress_core.allocate.problem import AllocationProblem, Cell
from compress_core.allocate.sensitivity import KLAnchor, Sensitivity, Spread, estimate_sensitivities, layer_spread
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import lagrangian_bound, solve_allocation
from compress_core.allocate.uniform import UniformCandidate, best_uniform, uniform_allocation, uniform_candidates

__all__ = [
    "Allocation",
    "AllocationItem",
    "AllocationProblem",
    "AllocationSolution",
    "Budget",
    "Cell",
    "KLAnchor",
    "ManualRecipe",
    "Sensitivity",
    "Spread",
    "UniformCandidate",
    "allocation_from_choice",
    "best_uniform",
    "estimate_sensitivities",
    "lagrangian_bound",
    "layer_sensitivities",
    "layer_spread",
    "manual_allocation",
    "optimal_allocation",
    "overrides_from_yaml",
    "overrides_to_yaml",
    "solve_allocation",
    "uniform_allocation",
    "uniform_candidates",
]
