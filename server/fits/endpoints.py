"""/api/v1/fits."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.params import FitParams
from results_db.tables import Fit
from server.fits.records import describe_fit, save_fit
from server.fits.schemas import FitPage, FitRow
from server.fits.service import compute_fit
from server.kit.answers import Answer, created
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered, get_row
from server.kit.units import AppDatabase, ReadSession, WriteSession

router = APIRouter(prefix="/fits", tags=["fits"], route_class=IdempotentRoute)


@router.post("", status_code=201, summary="Fit the error model now", responses={201: {"model": FitRow}})
def create_fit(params: FitParams, database: AppDatabase, session: WriteSession) -> Response:
    """Form ``auto`` fits all four forms, stores them under one ``group_id`` and answers with the chosen one."""
    # computed on a reading transaction, so that no write lock is held meanwhile
    with database.read() as reading:
        draft = compute_fit(reading, params)
    fit = save_fit(session, draft)[draft.chosen]
    return created(describe_fit(session, fit), f"/api/v1/fits/{fit.id}")


@router.get("", summary="Fits, newest first", responses={200: {"model": FitPage}})
def list_fits(
    session: ReadSession,
    page: PageQuery,
    model_id: str | None = None,
    calibration_id: str | None = None,
    group_id: str | None = None,
) -> Response:
    """Forms that were fitted and compared together share a ``group_id``; one of them is ``chosen``."""
    wanted = {Fit.model_id: model_id, Fit.calibration_id: calibration_id, Fit.group_id: group_id}
    query = filtered(select(Fit), wanted)
    return Answer(paginate(session, query, Fit.id, page))


@router.get("/{fit_id}", summary="One fit, with its parameters", responses={200: {"model": FitRow}})
def get_fit(fit_id: str, session: ReadSession) -> Response:
    return Answer(describe_fit(session, get_row(session, Fit, fit_id)))
