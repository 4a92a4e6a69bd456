"""Allocate and store. One pair of functions for the endpoint and for the job."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from compress_core.allocate import Allocation as Chosen
from compress_core.allocate import overrides_to_yaml
from compress_core.config import CompressionConfig
from compress_core.errors import InfeasibleBudget
from results_db.ids import new_id
from results_db.params import AllocateParams
from results_db.recording import newest_calibration
from results_db.retire import hold_measured, notice_retired
from results_db.stale import stale_inputs
from results_db.tables import Allocation, AllocationItem, Model
from server.allocations.budget import budget_bytes
from server.allocations.solve import Choice, Chooser
from server.allocations.table import Measured, load_measured
from server.allocations.weights import Weights, load_weights
from server.allocations.winner import Winner, find_winner
from server.kit.checks import check_calibration
from server.kit.problem import invalid
from server.kit.rows import get_row

#: kinds that are given, not chosen by measured numbers
_GIVEN = frozenset({"uniform", "overrides"})
#: kinds whose choice no sensitivity and no measured error can change
_BLIND = frozenset({"uniform", "overrides", "manual"})
#: kinds that write an allocation for each that they find
_MANY = frozenset({"random", "uniforms"})


@dataclass(frozen=True, eq=False, slots=True)
class AllocationDraft:
    """Computed allocations that are not stored yet."""

    params: AllocateParams
    #: that the allocation is bound to; None for what is given without naming one
    calibration_id: str | None
    #: that errors and predictions are of; None where the model has none
    measured_under: str | None
    measured: Measured
    #: of the objective; None where it weighs nothing
    weights: Weights | None
    #: of the KL anchors, with which every allocation is predicted
    kl: Weights
    #: of the table that was chosen from; empty where nothing was chosen
    menu: tuple[CompressionConfig, ...]
    choices: tuple[Choice, ...]
    #: in bytes of the scope
    budget: int | None
    #: stored bytes besides the matrices that the scope counts
    outside: int
    seconds: float


def compute_allocation(session: Session, params: AllocateParams) -> AllocationDraft | Winner:
    """Allocate from what is measured under the calibration named, or the model's newest.

    Raises:
        NotFound, Problem: something that the request names is missing or wrong.
        InfeasibleBudget: nothing fits; ``smallest_bytes`` in the scope says what would.
    """
    model = get_row(session, Model, params.model_id)
    if params.kind == "winner":
        return find_winner(session, params)
    calibration_id = params.calibration_id
    if calibration_id is not None or params.kind not in _GIVEN:
        calibration_id = check_calibration(session, model.id, calibration_id).id
    # what is given is predicted too, where something is measured
    newest = newest_calibration(session, model.id) if calibration_id is None else None
    measured_under = newest.id if newest is not None else calibration_id
    chooser, budget, outside = prepare(session, model, params, measured_under)
    began = time.perf_counter()
    try:
        choices = chooser.choose()
    except InfeasibleBudget as error:
        raise in_scope(error, budget, outside) from error
    seconds = time.perf_counter() - began
    return AllocationDraft(
        params,
        calibration_id,
        measured_under,
        chooser.measured,
        chooser.weights,
        chooser.kl,
        chooser.menu,
        tuple(choices),
        budget,
        outside,
        seconds,
    )


def prepare(
    session: Session, model: Model, params: AllocateParams, calibration_id: str | None
) -> tuple[Chooser, int | None, int]:
    """What there is to choose from, the budget in bytes of the scope, and the bytes that it counts besides matrices."""
    measured = load_measured(session, model, calibration_id)
    kl = load_weights(session, model.id, calibration_id, "kl")
    weights = None
    if params.objective != "error" and params.kind not in _BLIND:
        weights = (
            kl
            if params.objective == "kl"
            else load_weights(
                session,
                model.id,
                calibration_id,
                params.objective,
                incumbent_allocation_id=params.incumbent_allocation_id,
            )
        )
    outside = measured.fixed_bytes if params.scope == "model" else 0
    budget = _budget(session, params, measured, outside)
    chooser = Chooser(params, measured, weights, kl, None if budget is None else budget - outside)
    return chooser, budget, outside


def save_allocation(
    session: Session, draft: AllocationDraft | Winner, *, job_id: str | None = None, study_id: str | None = None
) -> list[Allocation]:
    """Store the allocations with their items and overrides, in order; one, unless the kind makes several.

    What was computed from a measurement that was retired meanwhile is stale at birth; what builds on a stale allocation
    says so in its details.
    """
    if isinstance(draft, Winner):
        return [_copy(session, draft, job_id=job_id, study_id=study_id)]
    hold_measured(session, [draft.measured_under], alone=False)
    many = draft.params.kind in _MANY
    rows = []
    for place, choice in enumerate(draft.choices, start=1):
        name = f"{draft.params.name}-{place:02d}" if many else draft.params.name
        rows.append(_save(session, draft, choice, name=name, job_id=job_id, study_id=study_id))
    notice_retired(session, draft.measured_under, draft.measured.ids.tolist())
    return rows


def describe_allocation(session: Session, allocation: Allocation) -> dict[str, Any]:
    """The allocation with its items."""
    columns = AllocationItem.__table__.c
    query = select(*columns).where(columns.allocation_id == allocation.id).order_by(columns.id)
    names = [column.name for column in columns]
    rows = session.connection().execute(query)
    return allocation.as_dict() | {"items": [dict(zip(names, row, strict=True)) for row in rows]}


def content_hash(allocation: Chosen) -> str:
    """Of the items: two allocations with equal ones compress to the same model."""
    hashes = sorted((str(item.key), item.config.config_hash) for item in allocation.items)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def predicted_kl(draft: AllocationDraft, choice: Choice) -> float | None:
    """Σ a·ε in nats with the KL sensitivities; None where one of them, or an error, is not measured."""
    shares = []
    for row, item in enumerate(choice.allocation.items):
        error = draft.measured.error_of(row, item.config.config_hash)
        weight = draft.kl.of(item.key, item.config)
        if error is None or weight is None:
            return None
        shares.append(weight * error)
    return math.fsum(shares)


def _save(
    session: Session,
    draft: AllocationDraft,
    choice: Choice,
    *,
    name: str,
    job_id: str | None,
    study_id: str | None,
) -> Allocation:
    params, chosen = draft.params, choice.allocation
    solution = chosen.solution
    row = Allocation(
        id=new_id("alloc"),
        model_id=params.model_id,
        calibration_id=draft.calibration_id,
        job_id=job_id,
        study_id=study_id,
        name=name,
        kind=choice.kind,
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
        content_hash=content_hash(chosen),
        overrides_yaml=overrides_to_yaml(chosen.configs),
        details=_details(draft, choice)
        | _built_on(session, params.budget_allocation_id, params.incumbent_allocation_id),
        seconds=draft.seconds,
        predicted_kl=predicted_kl(draft, choice),
        constraints=params.constraints.model_dump(mode="json", exclude_defaults=True) if params.constraints else None,
        seed=choice.seed,
    )
    session.add(row)
    session.flush()
    session.connection().execute(insert(AllocationItem), _items(draft, choice, row.id))
    return row


def _items(draft: AllocationDraft, choice: Choice, allocation_id: str) -> list[dict[str, Any]]:
    weights = draft.weights if choice.minimised else None
    return [
        {
            "allocation_id": allocation_id,
            "layer_idx": item.key.layer_idx,
            "projection": item.key.projection,
            "expert_idx": item.key.expert_idx,
            "config_hash": item.config.config_hash,
            "config": item.config.to_dict(),
            "b_q": item.config.b_q,
            "rank": item.config.rank,
            "requested_rank": item.menu_config.rank if item.clamped else None,
            "nbytes": item.nbytes,
            "error": draft.measured.error_of(row, item.config.config_hash),
            "sensitivity": None if weights is None else weights.of(item.key, item.config),
            "regret": choice.regret.get(item.key),
        }
        for row, item in enumerate(choice.allocation.items)
    ]


def _copy(session: Session, winner: Winner, *, job_id: str | None, study_id: str | None) -> Allocation:
    """The winner's row and items under a new id and name."""
    hold_measured(session, [winner.source.calibration_id], alone=False)
    # as it is now: it may have become stale since it was chosen, and its copy is as stale as it is
    source = session.get_one(Allocation, winner.source.id, populate_existing=True)
    values = source.as_dict() | {
        "id": new_id("alloc"),
        "name": winner.name,
        "job_id": job_id,
        "study_id": study_id,
        "details": source.details | {"choice": winner.details} | _built_on(session, source.id),
    }
    del values["created_at"]
    row = Allocation(**values)
    session.add(row)
    session.flush()
    items = describe_allocation(session, winner.source)["items"]
    copies = [{k: v for k, v in item.items() if k != "id"} | {"allocation_id": row.id} for item in items]
    session.connection().execute(insert(AllocationItem), copies)
    return row


def _budget(session: Session, params: AllocateParams, measured: Measured, outside: int) -> int | None:
    """The budget in bytes of the scope: as given, and no more than the allocation that it is compared with takes."""
    limits = []
    if params.budget is not None:
        original = measured.original_matrix_bytes
        limits.append(budget_bytes(params.budget, measured.specs, outside=outside, original_matrix_bytes=original))
    if params.budget_allocation_id is not None:
        other = get_row(session, Allocation, params.budget_allocation_id)
        if other.model_id != params.model_id:
            raise invalid("budget_allocation_id", f"{other.id} is an allocation of model {other.model_id}")
        limits.append(other.matrix_bytes + outside)
    return min(limits, default=None)


def _details(draft: AllocationDraft, choice: Choice) -> dict[str, Any]:
    chosen = choice.allocation
    told: dict[str, Any] = {
        "prediction": draft.kl.told | {"calibration_id": draft.measured_under},
        "measured": draft.measured.known(draft.menu if draft.params.kind not in _BLIND else ()),
    }
    if choice.minimised and draft.weights is not None:
        told["sensitivities"] = draft.weights.told
    if chosen.solution is not None:
        # what the certificate is made of again
        told["menu"] = [config.to_dict() for config in draft.menu]
    return (
        choice.details
        | told
        | {
            "is_uniform": chosen.is_uniform,
            "clamped": [
                {"matrix": str(item.key), "requested_rank": item.menu_config.rank, "rank": item.config.rank}
                for item in chosen.items
                if item.clamped
            ],
            "counts": [{"config": config.to_dict(), "matrices": n} for config, n in chosen.counts().items()],
        }
    )


def _built_on(session: Session, *allocation_ids: str | None) -> dict[str, Any]:
    """What a person must know of the allocations that a new one builds on."""
    stale = stale_inputs(session, allocation_ids)
    return {"stale_inputs": stale} if stale else {}


def in_scope(error: InfeasibleBudget, budget: int | None, outside: int) -> InfeasibleBudget:
    """The solver speaks of matrices; a budget for the whole model counts more."""
    if not outside:
        return error
    smallest = error.smallest_bytes + outside
    return InfeasibleBudget(
        f"a budget of {budget or 0:,} bytes for the whole model is too small: {outside:,} bytes (embeddings, head, "
        f"norms, headers) are never compressed, which leaves {(budget or 0) - outside:,} for the matrices. {error}. "
        f"In all that is at least {smallest:,} bytes; in scope decoder those outside the matrices do not count",
        smallest_bytes=smallest,
    )
