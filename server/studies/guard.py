"""What a study's validation says at one budget: how true its predictions were, and what its guard keeps."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from compress_core.analyze import Estimate, Guard
from results_db.tables import Allocation, Validation


def guard_of(session: Session, *, kept: Allocation, optimal: Allocation, uniform: Allocation) -> Guard:
    """Whether the optimum is kept, and the gain that decided it.

    Args:
        kept: of kind winner; its details have the choice.
    """
    choice = kept.details.get("choice") or {}
    gain = choice.get("gain_percent")
    keeps = kept.content_hash == optimal.content_hash != uniform.content_hash
    if gain is None:
        return Guard(keeps)
    n = session.get_one(Validation, choice["validation_id"]).n_windows
    challenger = choice.get("challenger")
    return Guard(
        keeps,
        Estimate(gain["value"], gain["low"], gain["high"], n),
        choice["confidence"],
        None if challenger == optimal.name else challenger,
    )


def describe_validation(session: Session, validation_id: str) -> dict[str, Any]:
    """How well predicted KL ranks and sizes what was realised."""
    row = session.get_one(Validation, validation_id)
    names = (
        *("n_allocations", "n_windows", "split", "spearman", "spearman_low", "spearman_high"),
        *("log_slope", "log_slope_low", "log_slope_high", "kappa", "calibrated"),
    )
    return {"validation_id": row.id} | {name: getattr(row, name) for name in names}


def correlation(validation: Validation) -> Estimate | None:
    """Spearman's rank correlation of predicted and realised KL, over allocations."""
    return _estimate(validation, "spearman")


def slope(validation: Validation) -> Estimate | None:
    """Of log realised over log predicted KL."""
    return _estimate(validation, "log_slope")


def _estimate(validation: Validation, name: str) -> Estimate | None:
    value, low, high = (getattr(validation, name + end) for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return None
    # a bootstrap interval need not hold the point
    return Estimate(value, min(low, value), max(high, value), validation.n_allocations)
