"""Other people's ways to choose, under the same budget and with the same errors as the exact solver: rivals by name."""

from compress_core.allocate.baselines.baseline import BASELINES, Baseline, baseline_allocation
from compress_core.allocate.baselines.discretised_dp import discretised_dp_choice
from compress_core.allocate.baselines.greedy import greedy_choice
from compress_core.allocate.baselines.minimax import minimax_choice

__all__ = [
    "BASELINES",
    "Baseline",
    "baseline_allocation",
    "discretised_dp_choice",
    "greedy_choice",
    "minimax_choice",
]
