"""The plan's manual recipe: a generous config for sensitive layers, a lean one for the rest, at a uniform's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress_core.allocate.allocation import Allocation, allocation_from_choice
from compress_core.allocate.problem import AllocationProblem
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError, InfeasibleBudget
from compress_core.matrix import MatrixKey


@dataclass(frozen=True, eq=False, slots=True)
class ManualRecipe:
    """What the recipe chose."""

    allocation: Allocation
    #: layers at the high config, most sensitive first
    high_layers: tuple[int, ...]
    #: layers at the low config, in the same order
    low_layers: tuple[int, ...]
    #: bytes of the budget that whole layers could not use
    unused_bytes: int


def layer_sensitivities(sensitivities: Mapping[MatrixKey, float]) -> dict[int, float]:
    """Σ of a layer's a_i: nats of KL per unit of relative error in all of its matrices."""
    layers: dict[int, float] = {}
    for key, value in sensitivities.items():
        layers[key.layer_idx] = layers.get(key.layer_idx, 0.0) + value
    return dict(sorted(layers.items()))


def manual_allocation(
    problem: AllocationProblem,
    sensitivity_by_layer: Mapping[int, float],
    *,
    high: CompressionConfig,
    low: CompressionConfig,
    budget_bytes: int,
) -> ManualRecipe:
    """Give the ``high`` config to as many of the most sensitive layers as fit, ``low`` to the others.

    The plan: high (b_q 3, rank 128) and low (2, 32) at the bytes of uniform (2, 64). Layers stay whole and are taken in
    order of sensitivity, so up to one layer's difference of the budget stays unused.

    Raises:
        ConfigError: a config is not on the menu or not available; a layer has no sensitivity.
        InfeasibleBudget: the low config everywhere already exceeds the budget.
    """
    high_column, low_column = problem.column_of(high), problem.column_of(low)
    layers = np.array([s.key.layer_idx for s in problem.specs])
    for layer in sorted(set(layers.tolist())):
        if layer not in sensitivity_by_layer:
            raise ConfigError(f"no sensitivity for layer {layer}: the manual recipe needs every layer's")
    order = sorted(set(layers.tolist()), key=lambda layer: (-sensitivity_by_layer[layer], layer))
    total = int(problem.nbytes[:, low_column].sum())
    if total > budget_bytes:
        raise InfeasibleBudget(
            f"the manual recipe needs {total:,} bytes with {low} everywhere, over its budget of {budget_bytes:,}: "
            "choose a leaner low config",
            smallest_bytes=total,
        )
    n_high = 0
    for layer in order:
        rows = layers == layer
        more = int((problem.nbytes[rows, high_column] - problem.nbytes[rows, low_column]).sum())
        if total + more > budget_bytes:
            break
        total += more
        n_high += 1
    chosen: Sequence[int] = order[:n_high]
    choice = np.where(np.isin(layers, chosen), high_column, low_column)
    allocation = allocation_from_choice(problem, choice, kind="manual", budget_bytes=budget_bytes)
    return ManualRecipe(allocation, tuple(chosen), tuple(order[n_high:]), budget_bytes - total)
