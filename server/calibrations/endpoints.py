"""/api/v1/calibrations."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import CalibrateParams
from results_db.tables import Calibration
from server.calibrations.schemas import CalibrationPage, CalibrationRow
from server.calibrations.service import check_calibrating, submit_calibration
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import filtered, get_row
from server.kit.units import AppDatabase, AppSettings, ReadSession

router = APIRouter(prefix="/calibrations", tags=["calibrations"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Calibration, "created_at", "n_tokens", "device_kind", "seconds"))]


@router.post(
    "", status_code=202, summary="Stream text through the model and keep H", responses={202: {"model": JobRow}}
)
def create_calibration(
    params: CalibrateParams, database: AppDatabase, settings: AppSettings, session: SubmitSession
) -> Response:
    """A job; what it makes is reused by later requests with the same text and sampling."""
    return job_accepted(submit_calibration(session, check_calibrating(database, params, settings)))


@router.get("", summary="Calibrations, newest first", responses={200: {"model": CalibrationPage}})
def list_calibrations(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    job_id: str | None = None,
    keeps: Literal["hessians", "tokens"] | None = None,
    device_kind: str | None = None,
) -> Response:
    """What each was computed from: text, seed, number of tokens. Equal requests share one calibration."""
    filters = {
        Calibration.model_id: model_id,
        Calibration.job_id: job_id,
        Calibration.keeps: keeps,
        Calibration.device_kind: device_kind,
    }
    return Answer(paginate(session, filtered(select(Calibration), filters), page))


@router.get("/{calibration_id}", summary="One calibration", responses={200: {"model": CalibrationRow}})
def get_calibration(calibration_id: str, session: ReadSession) -> Response:
    """``keeps`` says whether H lies on disk or is computed anew from the tokens."""
    return Answer(get_row(session, Calibration, calibration_id))
