"""/api/v1/sweeps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import SweepParams
from results_db.tables import Sweep
from server.jobs.schemas import JobRow, job_accepted
from server.kit.answers import Answer
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.priority import SubmitSession
from server.kit.rows import filtered, get_row
from server.kit.units import ReadSession
from server.sweeps.schemas import SweepDetail, SweepPage
from server.sweeps.service import describe_sweep, submit_sweep

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=IdempotentRoute)

Page = Annotated[PageRequest, Depends(listing(Sweep, "created_at", "n_cells"))]


@router.post(
    "", status_code=202, summary="Measure configs on the matrices of a model", responses={202: {"model": JobRow}}
)
def create_sweep(params: SweepParams, session: SubmitSession) -> Response:
    """A job; cells that were measured before are reused, so a sweep can be asked for again at no cost."""
    return job_accepted(submit_sweep(session, params))


@router.get("", summary="Sweeps, newest first", responses={200: {"model": SweepPage}})
def list_sweeps(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    calibration_id: str | None = None,
    job_id: str | None = None,
) -> Response:
    """What was asked to be measured; ``GET /sweeps/{sweep_id}`` also counts what has been."""
    filters = {Sweep.model_id: model_id, Sweep.calibration_id: calibration_id, Sweep.job_id: job_id}
    return Answer(paginate(session, filtered(select(Sweep), filters), page))


@router.get("/{sweep_id}", summary="One sweep, with n_recorded", responses={200: {"model": SweepDetail}})
def get_sweep(sweep_id: str, session: ReadSession) -> Response:
    """``n_recorded`` of ``n_cells`` are measured by now."""
    return Answer(describe_sweep(session, get_row(session, Sweep, sweep_id)))
