"""/api/v1/validations."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import ValidateParams
from results_db.tables import Validation
from server.allocations.stale import stale_warning
from server.jobs.schemas import WarnedJobRow, job_accepted_with
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import NameContains, containing, filtered, get_row
from server.kit.units import AppSettings, ReadSession
from server.validations.schemas import ValidationDetail, ValidationPage
from server.validations.service import describe_validation, submit_validation

router = APIRouter(prefix="/validations", tags=["validations"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Validation, "created_at", "name", "split", "spearman", "n_allocations"))]


@router.post(
    "",
    status_code=202,
    summary="Try allocations as a whole on held-out text: joint KL and PPL, beside what was predicted",
    responses={202: {"model": WarnedJobRow}},
)
def create_validation(params: ValidateParams, settings: AppSettings, session: SubmitSession) -> Response:
    """A job: each allocation is compressed in memory and read jointly, one layer at a time. ``warning`` says
    where one of them is stale."""
    job = submit_validation(session, params, settings)
    return job_accepted_with(job, stale_warning(session, params.allocation_ids))


@router.get("", summary="Validations, newest first", responses={200: {"model": ValidationPage}})
def list_validations(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    calibration_id: str | None = None,
    study_id: str | None = None,
    job_id: str | None = None,
    name: str | None = None,
    name_contains: NameContains = None,
    split: Literal["measure", "select"] | None = None,
) -> Response:
    """How well the order of allocations was predicted on text that nothing was chosen on."""
    filters = {
        Validation.model_id: model_id,
        Validation.calibration_id: calibration_id,
        Validation.study_id: study_id,
        Validation.job_id: job_id,
        Validation.name: name,
        Validation.split: split,
    }
    query = containing(filtered(select(Validation), filters), Validation.name, name_contains)
    return Answer(paginate(session, query, page))


@router.get("/{validation_id}", summary="One validation, with its items", responses={200: {"model": ValidationDetail}})
def get_validation(validation_id: str, session: ReadSession) -> Response:
    """Predicted and realised KL of each allocation, and the guard's verdict in words."""
    return Answer(describe_validation(session, get_row(session, Validation, validation_id)))
