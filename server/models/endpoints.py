"""/api/v1/models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Model
from server.kit.answers import Answer, page_model, row_model
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import NameContains, containing, filtered, get_row
from server.kit.units import AppSettings, ReadSession
from server.models.schemas import ModelRequest
from server.models.service import inspect_source, register_model

router = APIRouter(prefix="/models", tags=["models"], route_class=IdempotentRoute)

ModelRow = row_model(Model)
#: ``job_id``: of the job that fetches it
FetchedModelRow = row_model(Model, "FetchedModel", job_id=str)
Page = Annotated[PageRequest, Depends(listing(Model, "created_at", "name", "architecture", "original_bytes"))]


@router.post(
    "",
    status_code=201,
    summary="Register a checkpoint: 201 new, 200 known by its fingerprint, 202 a hub id that a worker fetches",
    responses={200: {"model": ModelRow}, 201: {"model": ModelRow}, 202: {"model": FetchedModelRow}},
)
def create_model(request: ModelRequest, settings: AppSettings, session: SubmitSession) -> Response:
    """A local folder is looked at now: only headers are read. A hub id needs the 40 hex digits of a commit."""
    inspected = inspect_source(request, settings)
    model, new, job = register_model(session, inspected)
    content: dict[str, Any] = model.as_dict()
    if job is not None:
        return Answer(content | {"job_id": job.id}, status_code=202, headers={"Location": f"/api/v1/jobs/{job.id}"})
    return Answer(content, status_code=201 if new else 200, headers={"Location": f"/api/v1/models/{model.id}"})


@router.get("", summary="Models, newest first", responses={200: {"model": page_model(ModelRow)}})
def list_models(
    session: ReadSession,
    page: Page,
    name: Annotated[str | None, Query(description="exact name")] = None,
    name_contains: NameContains = None,
    source: Annotated[str | None, Query(description="as it was given")] = None,
    architecture: str | None = None,
) -> Response:
    """Checkpoints that were registered, each with its matrices. A hub model has no fingerprint until it is fetched."""
    filters = {Model.name: name, Model.source: source, Model.architecture: architecture}
    query = filtered(select(Model), filters)
    return Answer(paginate(session, containing(query, Model.name, name_contains), page))


@router.get("/{model_id}", summary="One model, with its matrices", responses={200: {"model": ModelRow}})
def get_model(model_id: str, session: ReadSession) -> Response:
    """Shapes come from the headers of its weight files."""
    return Answer(get_row(session, Model, model_id))
