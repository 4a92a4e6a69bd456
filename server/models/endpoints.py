"""/api/v1/models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Model
from server.kit.answers import Answer, page_model, row_model
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import AppSettings, ReadSession, WriteSession
from server.models.schemas import ModelRequest
from server.models.service import inspect_source, register_model

router = APIRouter(prefix="/models", tags=["models"], route_class=IdempotentRoute)

ModelRow = row_model(Model)


@router.post(
    "",
    status_code=201,
    summary="Register a checkpoint: 201 new, 200 known by its fingerprint, 202 a hub id that a worker fetches",
    responses={200: {"model": ModelRow}, 201: {"model": ModelRow}, 202: {"model": ModelRow}},
)
def create_model(request: ModelRequest, settings: AppSettings, session: WriteSession) -> Response:
    inspected = inspect_source(request, settings)
    model, new, job = register_model(session, inspected)
    content: dict[str, Any] = model.as_dict()
    if job is not None:
        return Answer(content | {"job_id": job.id}, status_code=202, headers={"Location": f"/api/v1/jobs/{job.id}"})
    return Answer(content, status_code=201 if new else 200, headers={"Location": f"/api/v1/models/{model.id}"})


@router.get("", summary="Models, newest first", responses={200: {"model": page_model(ModelRow)}})
def list_models(
    session: ReadSession, page: PageQuery, name: Annotated[str | None, Query(description="exact name")] = None
) -> Response:
    return Answer(paginate(session, filtered(select(Model), {Model.name: name}), Model.id, page))


@router.get("/{model_id}", summary="One model, with its matrices", responses={200: {"model": ModelRow}})
def get_model(model_id: str, session: ReadSession) -> Response:
    return Answer(get_row(session, Model, model_id))
