"""Kind winner: the allocation that a validation found best, copied so that it has a name of its own in a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.analyze.choice import Candidate, choose
from compress_core.errors import ConfigError
from results_db.params import AllocateParams
from results_db.tables import Allocation, Validation, ValidationItem, ValidationWindow
from server.kit.problem import core_problem, invalid
from server.kit.rows import get_row

#: kinds that are there for comparison alone
_BLIND = ("random", "near_optimal")


@dataclass(frozen=True, eq=False, slots=True)
class Winner:
    """The allocation to copy and why it won."""

    #: of the copy
    name: str
    source: Allocation
    details: dict[str, Any]


def find_winner(session: Session, params: AllocateParams) -> Winner:
    """Apply the guard among the allocations named: the best uniform one, unless another is shown to be better.

    Raises:
        NotFound: there is no such validation.
        Problem: it is none of this model, or has none of the names.
    """
    if params.validation_id is None:
        raise invalid("validation_id", "kind winner needs the validation that decides")
    validation = get_row(session, Validation, params.validation_id)
    if validation.model_id != params.model_id:
        raise invalid("validation_id", f"{validation.id} is a validation of model {validation.model_id}")
    items = _items(session, validation, params.among)
    allocations = [get_row(session, Allocation, item.allocation_id or "") for item in items]
    windows = [_windows(session, item) for item in items]
    candidates = [
        Candidate(
            name=item.name,
            nbytes=item.matrix_bytes,
            nll_N=np.array([nll for nll, _ in found]),
            uniform=bool(allocation.details.get("is_uniform")),
            may_win=allocation.kind not in _BLIND,
            budget=_matrix_budget(allocation),
        )
        for item, allocation, found in zip(items, allocations, windows, strict=True)
    ]
    try:
        choice = choose(candidates, np.array([n for _, n in windows[0]], dtype=np.int64))
    except ConfigError as error:
        raise core_problem(error, "validation_id") from error
    gain = choice.gain_percent
    return Winner(
        params.name,
        allocations[choice.winner],
        {
            "validation_id": validation.id,
            "among": [item.name for item in items],
            "winner": items[choice.winner].name,
            "challenger": None if choice.challenger is None else items[choice.challenger].name,
            "copied_from": allocations[choice.winner].id,
            "verdict": choice.sentence,
            "gain_percent": gain and {"value": gain.value, "low": gain.low, "high": gain.high},
            "confidence": choice.confidence,
        },
    )


def _items(session: Session, validation: Validation, among: list[str]) -> list[ValidationItem]:
    query = select(ValidationItem).where(
        ValidationItem.validation_id == validation.id, ValidationItem.allocation_id.is_not(None)
    )
    items = session.scalars(query.order_by(ValidationItem.position)).all()
    names = [item.name for item in items]
    found = [item for item in items if not among or item.name in among]
    if not found:
        raise invalid("among", f"validation {validation.id} has none of {', '.join(among)}: it has {', '.join(names)}")
    return found


def _windows(session: Session, item: ValidationItem) -> list[tuple[float, int]]:
    query = (
        select(ValidationWindow.nll, ValidationWindow.n_tokens)
        .where(ValidationWindow.validation_item_id == item.id)
        .order_by(ValidationWindow.item_idx)
    )
    return [(row[0], row[1]) for row in session.execute(query)]


def _matrix_budget(allocation: Allocation) -> int | None:
    """Bytes that the matrices were allowed."""
    if allocation.budget_bytes is None:
        return None
    return allocation.budget_bytes - (allocation.fixed_bytes if allocation.scope == "model" else 0)
