"""/api/v1/calibrations."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import CalibrateParams
from results_db.tables import Calibration
from server.calibrations.schemas import CalibrationPage, CalibrationRow
from server.calibrations.service import submit_calibration
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import AppSettings, ReadSession, WriteSession

router = APIRouter(prefix="/calibrations", tags=["calibrations"], route_class=IdempotentRoute)


@router.post(
    "", status_code=202, summary="Stream text through the model and keep H", responses={202: {"model": JobRow}}
)
def create_calibration(params: CalibrateParams, settings: AppSettings, session: WriteSession) -> Response:
    return job_accepted(submit_calibration(session, params, settings))


@router.get("", summary="Calibrations, newest first", responses={200: {"model": CalibrationPage}})
def list_calibrations(session: ReadSession, page: PageQuery, model_id: str | None = None) -> Response:
    query = filtered(select(Calibration), {Calibration.model_id: model_id})
    return Answer(paginate(session, query, Calibration.id, page))


@router.get("/{calibration_id}", summary="One calibration", responses={200: {"model": CalibrationRow}})
def get_calibration(calibration_id: str, session: ReadSession) -> Response:
    return Answer(get_row(session, Calibration, calibration_id))
