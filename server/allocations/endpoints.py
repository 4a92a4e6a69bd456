"""/api/v1/allocations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import JSONResponse, PlainTextResponse, Response

from results_db.params import AllocateParams
from results_db.tables import Allocation
from server.allocations.certificate import make_certificate
from server.allocations.prices import answer_frontier, answer_what_if
from server.allocations.schemas import (
    AllocationDetail,
    AllocationPage,
    AllocationsMade,
    FrontierAnswer,
    FrontierRequest,
    WhatIfAnswer,
    WhatIfRequest,
)
from server.allocations.service import compute_allocation, describe_allocation, save_allocation
from server.kit.answers import Answer, created
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.rows import NameContains, Stale, containing, filtered, get_row, marked
from server.kit.units import AppDatabase, ReadSession, WriteSession

router = APIRouter(prefix="/allocations", tags=["allocations"], route_class=IdempotentRoute)

_BYTES = ("budget_bytes", "matrix_bytes", "total_bytes", "bits_per_weight")
_VALUES = ("objective_value", "predicted_kl", "seconds")
Page = Annotated[PageRequest, Depends(listing(Allocation, "created_at", "name", "kind", *_BYTES, *_VALUES))]


@router.post("", status_code=201, summary="Allocate now", responses={201: {"model": AllocationsMade}})
def create_allocation(params: AllocateParams, database: AppDatabase, session: WriteSession) -> Response:
    """Kind ``optimal`` proves its optimality or says how far it may be off; the other kinds are baselines."""
    # solved on a reading transaction, so that no write lock is held meanwhile
    with database.read(computes=True) as reading:
        draft = compute_allocation(reading, params)
    allocations = save_allocation(session, draft)
    first = allocations[0]
    body = describe_allocation(session, first) | {"allocation_ids": [allocation.id for allocation in allocations]}
    return created(body, f"/api/v1/allocations/{first.id}")


@router.post(
    "/frontier", summary="The whole frontier of objective over bytes", responses={200: {"model": FrontierAnswer}}
)
def get_frontier(request: FrontierRequest, session: ReadSession) -> Response:
    """What every budget would buy, from the smallest choice of each matrix to the largest. Nothing is stored."""
    return Answer(answer_frontier(session, request))


@router.post(
    "/what-if",
    summary="What a pin, more bytes or another choice would cost beside the optimum",
    responses={200: {"model": WhatIfAnswer}},
)
def get_what_if(request: WhatIfRequest, session: ReadSession) -> Response:
    """The optimum is solved anew with the change, so the price is exact. Nothing is stored."""
    return Answer(answer_what_if(session, request))


@router.get("", summary="Allocations, newest first", responses={200: {"model": AllocationPage}})
def list_allocations(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    calibration_id: str | None = None,
    study_id: str | None = None,
    job_id: str | None = None,
    name: str | None = None,
    name_contains: NameContains = None,
    kind: str | None = None,
    stale: Stale = None,
) -> Response:
    """Uniform choices and baselines are allocations too; the config of each matrix is in ``GET /allocations/{id}``."""
    filters = {
        Allocation.model_id: model_id,
        Allocation.calibration_id: calibration_id,
        Allocation.study_id: study_id,
        Allocation.job_id: job_id,
        Allocation.name: name,
        Allocation.kind: kind,
    }
    query = containing(filtered(select(Allocation), filters), Allocation.name, name_contains)
    return Answer(paginate(session, marked(query, Allocation.stale_at, stale), page))


@router.get("/{allocation_id}", summary="One allocation, with its items", responses={200: {"model": AllocationDetail}})
def get_allocation(allocation_id: str, session: ReadSession) -> Response:
    """The config, bytes and expected error of each matrix, and what the solver found."""
    return Answer(describe_allocation(session, get_row(session, Allocation, allocation_id)))


@router.get(
    "/{allocation_id}/certificate.json",
    summary="The proof of an optimal allocation, for bitbudget verify",
    response_class=JSONResponse,
)
def get_certificate(allocation_id: str, session: ReadSession) -> Response:
    """Prices that bound every allocation under the budget: ``bitbudget verify`` checks them without this server."""
    text = make_certificate(session, get_row(session, Allocation, allocation_id))
    # as it is: its lines are part of the form
    return Response(text, media_type="application/json")


@router.get("/{allocation_id}/overrides.yaml", summary="The overrides per matrix", response_class=PlainTextResponse)
def get_overrides(allocation_id: str, session: ReadSession) -> Response:
    """One config a matrix in a fixed order, as ``POST /compressions`` takes it."""
    text = get_row(session, Allocation, allocation_id).overrides_yaml
    return PlainTextResponse(text, media_type="application/yaml")
