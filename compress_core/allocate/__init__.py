"""Allocation: which config for which matrix, under a byte budget. Needs numpy, scipy and yaml only."""

from compress_core.allocate.allocation import Allocation, AllocationItem, allocation_from_choice
from compress_core.allocate.baselines import BASELINES, Baseline, baseline_allocation
from compress_core.allocate.budget import Budget
from compress_core.allocate.cells import FilledCells, fill_cells
from compress_core.allocate.certificate import lagrangian_bound, reduced_costs
from compress_core.allocate.certificate_file import certificate_document, certificate_text, check_constraints
from compress_core.allocate.constrained import ConstrainedTable, constrained
from compress_core.allocate.constrained_solver import bound_of, second_constrained, solve_constrained
from compress_core.allocate.constraints import Constraints, Group, Limit, Pin, Veto
from compress_core.allocate.frontier import Frontier, constrained_frontier, frontier
from compress_core.allocate.manual import ManualRecipe, layer_sensitivities, manual_allocation
from compress_core.allocate.optimal import optimal_allocation
from compress_core.allocate.overrides import overrides_from_yaml, overrides_to_yaml
from compress_core.allocate.patterns import ConfigPattern, MatrixPattern
from compress_core.allocate.problem import AllocationProblem, Cell
from compress_core.allocate.random_allocations import random_allocations
from compress_core.allocate.second_best import SecondBest, second_best
from compress_core.allocate.sensitivity import KLAnchor, Sensitivity, class_sensitivities, estimate_sensitivities
from compress_core.allocate.solution import AllocationSolution
from compress_core.allocate.solver import solve_allocation
from compress_core.allocate.spread import Spread, layer_spread
from compress_core.allocate.uniform import UniformCandidate, best_uniform, uniform_allocation, uniform_candidates
from compress_core.allocate.verify import Check, verify
from compress_core.allocate.what_if import Price, Regret, WhatIf

__all__ = [
    "BASELINES",
    "Allocation",
    "AllocationItem",
    "AllocationProblem",
    "AllocationSolution",
    "Baseline",
    "Budget",
    "Cell",
    "Check",
    "ConfigPattern",
    "ConstrainedTable",
    "Constraints",
    "FilledCells",
    "Frontier",
    "Group",
    "KLAnchor",
    "Limit",
    "ManualRecipe",
    "MatrixPattern",
    "Pin",
    "Price",
    "Regret",
    "SecondBest",
    "Sensitivity",
    "Spread",
    "UniformCandidate",
    "Veto",
    "WhatIf",
    "allocation_from_choice",
    "baseline_allocation",
    "best_uniform",
    "bound_of",
    "certificate_document",
    "certificate_text",
    "check_constraints",
    "class_sensitivities",
    "constrained",
    "constrained_frontier",
    "estimate_sensitivities",
    "fill_cells",
    "frontier",
    "lagrangian_bound",
    "layer_sensitivities",
    "layer_spread",
    "manual_allocation",
    "optimal_allocation",
    "overrides_from_yaml",
    "overrides_to_yaml",
    "random_allocations",
    "reduced_costs",
    "second_best",
    "second_constrained",
    "solve_allocation",
    "solve_constrained",
    "uniform_allocation",
    "uniform_candidates",
    "verify",
]
