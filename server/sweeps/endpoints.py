"""/api/v1/sweeps."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import SweepParams
from results_db.tables import Sweep
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import ReadSession, WriteSession
from server.sweeps.schemas import SweepPage, SweepRow
from server.sweeps.service import describe_sweep, submit_sweep

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=IdempotentRoute)


@router.post(
    "", status_code=202, summary="Measure configs on the matrices of a model", responses={202: {"model": JobRow}}
)
def create_sweep(params: SweepParams, session: WriteSession) -> Response:
    return job_accepted(submit_sweep(session, params))


@router.get("", summary="Sweeps, newest first", responses={200: {"model": SweepPage}})
def list_sweeps(
    session: ReadSession, page: PageQuery, model_id: str | None = None, calibration_id: str | None = None
) -> Response:
    query = filtered(select(Sweep), {Sweep.model_id: model_id, Sweep.calibration_id: calibration_id})
    return Answer(paginate(session, query, Sweep.id, page))


@router.get("/{sweep_id}", summary="One sweep, with n_recorded", responses={200: {"model": SweepRow}})
def get_sweep(sweep_id: str, session: ReadSession) -> Response:
    return Answer(describe_sweep(session, get_row(session, Sweep, sweep_id)))
