"""The gate on ranks looks at the worst budget, of those at which there was something to rank."""

from __future__ import annotations

from dataclasses import dataclass

from compress_core.analyze import GateThresholds
from results_db.tables import Validation
from server.gates.decide import CRITERIA


@dataclass(frozen=True)
class Found:
    """Evidence of validations alone."""

    rows: dict[str, Validation]

    def validations(self) -> dict[str, Validation]:
        return self.rows


def row(n: int, value: float, low: float, high: float) -> Validation:
    return Validation(n_allocations=n, spearman=value, spearman_low=low, spearman_high=high)


def test_budgets_without_random_allocations_do_not_decide() -> None:
    rows = {"budget 1": row(24, 0.97, 0.93, 0.99), "budget 2": row(4, 0.8, -0.5, 1.0)}
    ranks = CRITERIA["prediction_ranks"].decide
    result = ranks(Found(rows), GateThresholds(), 4)  # type: ignore[arg-type]
    assert (result.verdict, result.value) == ("GO", 0.97)
    rows["budget 3"] = row(23, 0.5, 0.2, 0.8)
    worst = ranks(Found(rows), GateThresholds(), 4)  # type: ignore[arg-type]
    assert (worst.verdict, worst.value) == ("NO-GO", 0.5)
    assert "budget 3" in worst.detail
