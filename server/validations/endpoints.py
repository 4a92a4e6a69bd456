"""/api/v1/validations."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import ValidateParams
from results_db.tables import Validation
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import AppSettings, ReadSession, WriteSession
from server.validations.schemas import ValidationPage, ValidationRow
from server.validations.service import describe_validation, submit_validation

router = APIRouter(prefix="/validations", tags=["validations"], route_class=IdempotentRoute)


@router.post(
    "",
    status_code=202,
    summary="Try allocations as a whole on held-out text: joint KL and PPL, beside what was predicted",
    responses={202: {"model": JobRow}},
)
def create_validation(params: ValidateParams, settings: AppSettings, session: WriteSession) -> Response:
    return job_accepted(submit_validation(session, params, settings))


@router.get("", summary="Validations, newest first", responses={200: {"model": ValidationPage}})
def list_validations(
    session: ReadSession,
    page: PageQuery,
    model_id: str | None = None,
    study_id: str | None = None,
    name: str | None = None,
) -> Response:
    filters = {Validation.model_id: model_id, Validation.study_id: study_id, Validation.name: name}
    return Answer(paginate(session, filtered(select(Validation), filters), Validation.id, page))


@router.get("/{validation_id}", summary="One validation, with its items", responses={200: {"model": ValidationRow}})
def get_validation(validation_id: str, session: ReadSession) -> Response:
    return Answer(describe_validation(session, get_row(session, Validation, validation_id)))
