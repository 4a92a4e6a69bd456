"""Allocate and store. One function for the endpoint and for the job."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core.allocate import Sensitivity, overrides_to_yaml
from compress_core.errors import InfeasibleBudget
from compress_core.matrix import MatrixKey
from results_db.ids import new_id
from results_db.params import AllocateParams
from results_db.tables import Allocation, AllocationItem, Model
from server.allocations.solve import Choice, choose
from server.allocations.table import Measured, budget_bytes, load_measured, load_sensitivities
from server.kit.checks import check_calibration
from server.kit.rows import get_row

#: kinds that choose by measured numbers
_NEEDS_CALIBRATION = frozenset({"optimal", "best_uniform", "manual"})


@dataclass(frozen=True, eq=False, slots=True)
class AllocationDraft:
    """A computed allocation that is not stored yet."""

    params: AllocateParams
    calibration_id: str | None
    measured: Measured
    sensitivities: Mapping[MatrixKey, Sensitivity]
    choice: Choice
    #: in bytes of the scope
    budget: int | None
    #: stored bytes besides the matrices that the scope counts
    outside: int
    seconds: float


def compute_allocation(session: Session, params: AllocateParams) -> AllocationDraft:
    """Allocate from what is measured under the calibration named, or the model's newest.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong.
        InfeasibleBudget: nothing fits; ``smallest_bytes`` in the scope says what would.
    """
    model = get_row(session, Model, params.model_id)
    calibration_id = params.calibration_id
    if calibration_id is not None or params.kind in _NEEDS_CALIBRATION:
        calibration_id = check_calibration(session, model.id, calibration_id).id
    measured = load_measured(session, model, calibration_id)
    by_kl = params.kind == "manual" or (params.kind in _NEEDS_CALIBRATION and params.objective == "kl")
    sensitivities = load_sensitivities(session, model.id, calibration_id) if by_kl and calibration_id else {}
    outside = measured.fixed_bytes if params.scope == "model" else 0
    budget = _budget(session, params, measured, outside)
    began = time.perf_counter()
    try:
        choice = choose(params, measured, sensitivities, None if budget is None else budget - outside)
    except InfeasibleBudget as error:
        raise _in_scope(error, budget, outside) from error
    seconds = time.perf_counter() - began
    return AllocationDraft(params, calibration_id, measured, sensitivities, choice, budget, outside, seconds)


def save_allocation(
    session: Session, draft: AllocationDraft, *, job_id: str | None = None, study_id: str | None = None
) -> Allocation:
    """Store the allocation with its items and its overrides."""
    params, choice, chosen = draft.params, draft.choice, draft.choice.allocation
    solution = chosen.solution
    hashes = sorted((str(item.key), item.config.config_hash) for item in chosen.items)
    row = Allocation(
        id=new_id("alloc"),
        model_id=params.model_id,
        calibration_id=draft.calibration_id,
        job_id=job_id,
        study_id=study_id,
        name=params.name,
        kind=params.kind,
        objective=params.objective if choice.minimised else None,
        scope=params.scope,
        budget_bytes=draft.budget,
        matrix_bytes=chosen.total_bytes,
        fixed_bytes=draft.measured.fixed_bytes,
        total_bytes=chosen.total_bytes + draft.outside,
        bits_per_weight=chosen.bits_per_weight,
        objective_value=chosen.objective if choice.minimised else None,
        lower_bound=solution.lower_bound if solution else None,
        optimal=solution.optimal if solution else None,
        shadow_price=solution.multiplier if solution else None,
        n_distinct_configs=len({item.menu_config.config_hash for item in chosen.items}),
        content_hash=hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        overrides_yaml=overrides_to_yaml(chosen.configs),
        details=_details(draft),
        seconds=draft.seconds,
    )
    session.add(row)
    session.flush()
    session.add_all(_items(draft, row.id))
    session.flush()
    return row


def describe_allocation(session: Session, allocation: Allocation) -> dict[str, Any]:
    """The allocation with its items."""
    query = select(AllocationItem).where(AllocationItem.allocation_id == allocation.id).order_by(AllocationItem.id)
    return allocation.as_dict() | {"items": [item.as_dict() for item in session.scalars(query)]}


def _budget(session: Session, params: AllocateParams, measured: Measured, outside: int) -> int | None:
    """The budget in bytes of the scope: as given, and no more than the allocation that it is compared with takes."""
    limits = [] if params.budget is None else [budget_bytes(params.budget, measured.specs, outside=outside)]
    if params.budget_allocation_id is not None:
        limits.append(get_row(session, Allocation, params.budget_allocation_id).matrix_bytes + outside)
    return min(limits, default=None)


def _items(draft: AllocationDraft, allocation_id: str) -> list[AllocationItem]:
    by_kl = draft.choice.minimised and draft.params.objective == "kl"
    items = []
    for item in draft.choice.allocation.items:
        cell = draft.measured.cells.get((item.key, item.config.config_hash))
        items.append(
            AllocationItem(
                allocation_id=allocation_id,
                layer_idx=item.key.layer_idx,
                projection=item.key.projection,
                expert_idx=item.key.expert_idx,
                config_hash=item.config.config_hash,
                config=item.config.to_dict(),
                b_q=item.config.b_q,
                rank=item.config.rank,
                requested_rank=item.menu_config.rank if item.clamped else None,
                nbytes=item.nbytes,
                error=cell.error if cell else None,
                sensitivity=draft.sensitivities[item.key].value if by_kl else None,
            )
        )
    return items


def _details(draft: AllocationDraft) -> dict[str, Any]:
    chosen = draft.choice.allocation
    return draft.choice.details | {
        "is_uniform": chosen.is_uniform,
        "clamped": [
            {"matrix": str(item.key), "requested_rank": item.menu_config.rank, "rank": item.config.rank}
            for item in chosen.items
            if item.clamped
        ],
        "counts": [{"config": config.to_dict(), "matrices": n} for config, n in chosen.counts().items()],
    }


def _in_scope(error: InfeasibleBudget, budget: int | None, outside: int) -> InfeasibleBudget:
    """The solver speaks of matrices; a budget for the whole model counts more."""
    if not outside:
        return error
    smallest = error.smallest_bytes + outside
    return InfeasibleBudget(
        f"a budget of {budget or 0:,} bytes for the whole model is too small: {outside:,} bytes (embeddings, head, "
        f"norms, headers) are never compressed and the smallest choice takes {error.smallest_bytes:,} more. Allow at "
        f"least {smallest:,} bytes, use scope decoder, or offer smaller configs",
        smallest_bytes=smallest,
    )
