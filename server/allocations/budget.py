"""A budget as people say it, in bytes: the one place where the API resolves it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from compress_core.allocate import AllocationProblem, Budget
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixSpec
from compress_core.nbytes import predicted_nbytes
from results_db.params import BudgetSpec
from server.kit.checks import check_config
from server.kit.problem import invalid

#: stands for any config where a budget asks only for sizes
_ANY = CompressionConfig(b_q=2, codebook="scalar")


def uniform_bytes(config: CompressionConfig, specs: Sequence[MatrixSpec]) -> int:
    """Bytes of the matrices when each takes the config, ranks clamped."""
    return sum(
        predicted_nbytes(config.clamped(s.out_features, s.in_features), s.out_features, s.in_features) for s in specs
    )


def budget_bytes(
    budget: BudgetSpec, specs: Sequence[MatrixSpec], *, outside: int, original_matrix_bytes: int | None = None
) -> int:
    """The budget in bytes of its scope, as ``compress_core.allocate.Budget`` counts them.

    Bits per weight and uniform configs speak of the matrices alone, so there ``outside`` is added; a fraction is one of
    everything in the scope.

    Args:
        outside: stored bytes besides the matrices that the scope counts; 0 in scope decoder.
        original_matrix_bytes: of the matrices before compression; None: 2 a weight.

    Raises:
        Problem: none or several of the budget's fields are given, or its config is not valid.
    """
    given: dict[str, Any] = {k: v for k, v in budget.model_dump().items() if v is not None}
    if len(given) != 1:
        raise invalid("budget", f"give exactly one of {', '.join(BudgetSpec.model_fields)}")
    config = _ANY if budget.uniform is None else check_config(budget.uniform, "budget.uniform")
    problem = AllocationProblem(
        tuple(specs),
        (config,),
        np.zeros((len(specs), 1)),
        _nbytes(config, specs),
        np.ones(len(specs)),
        outside,
        original_matrix_bytes,
    )
    return _in_words_of_the_core(budget, config).matrix_bytes(problem) + outside


def _in_words_of_the_core(budget: BudgetSpec, config: CompressionConfig) -> Budget:
    # a float's shortest decimal is what the person wrote: 2.1 bits, not 2.100000000000000088
    if budget.bytes is not None:
        return Budget("bytes", Decimal(budget.bytes), scope="model")
    if budget.gb is not None:
        return Budget("bytes", Decimal(round(budget.gb * 10**9)), scope="model")
    if budget.bits_per_weight is not None:
        return Budget("bpw", Decimal(str(budget.bits_per_weight)), scope="model")
    if budget.fraction is not None:
        return Budget("fraction", Decimal(str(budget.fraction)), scope="model")
    return Budget("uniform", None, (("config_hash", config.config_hash),), scope="model")


def _nbytes(config: CompressionConfig, specs: Sequence[MatrixSpec]) -> np.ndarray[Any, np.dtype[np.int64]]:
    shapes = {(s.out_features, s.in_features) for s in specs}
    taken = {shape: predicted_nbytes(config.clamped(*shape), *shape) for shape in shapes}
    return np.array([[taken[s.out_features, s.in_features]] for s in specs], dtype=np.int64)
