"""/api/v1/sensitivities."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import SensitivityParams
from results_db.tables import SensitivityAnchor
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.checks import check_projection
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import LARGEST_ID, PageQuery, paginate
from server.kit.rows import filtered
from server.kit.units import AppSettings, ReadSession, WriteSession
from server.sensitivities.schemas import SensitivityPage
from server.sensitivities.service import submit_sensitivity

router = APIRouter(prefix="/sensitivities", tags=["sensitivities"], route_class=IdempotentRoute)


@router.post(
    "",
    status_code=202,
    summary="Compress one matrix at a time and measure the KL of the output",
    responses={202: {"model": JobRow}},
)
def create_sensitivity(params: SensitivityParams, settings: AppSettings, session: WriteSession) -> Response:
    return job_accepted(submit_sensitivity(session, params, settings))


@router.get("", summary="Sensitivities, one row a matrix and anchor", responses={200: {"model": SensitivityPage}})
def list_sensitivities(
    session: ReadSession,
    page: PageQuery,
    model_id: str | None = None,
    calibration_id: str | None = None,
    layer_idx: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    projection: str | None = None,
) -> Response:
    check_projection(projection)
    filters = {
        SensitivityAnchor.model_id: model_id,
        SensitivityAnchor.calibration_id: calibration_id,
        SensitivityAnchor.layer_idx: layer_idx,
        SensitivityAnchor.projection: projection,
    }
    return Answer(paginate(session, filtered(select(SensitivityAnchor), filters), SensitivityAnchor.id, page))
