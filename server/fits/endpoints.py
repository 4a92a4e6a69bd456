"""/api/v1/fits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlalchemy.orm import defer
from starlette.responses import Response

from results_db.params import FitParams
from results_db.tables import Fit
from server.fits.records import describe_fit, save_fit
from server.fits.schemas import FitDetail, FitListed, FitPage
from server.fits.service import compute_fit
from server.kit.answers import Answer, created
from server.kit.idempotency import IdempotentRoute
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.rows import Stale, filtered, get_row, marked
from server.kit.units import AppDatabase, ReadSession, WriteSession

router = APIRouter(prefix="/fits", tags=["fits"], route_class=IdempotentRoute)

Page = Annotated[
    PageRequest, Depends(listing(Fit, "created_at", "form", "codebook", "r2", "r2_log", "cv_error", "seconds"))
]


@router.post("", status_code=201, summary="Fit the error model now", responses={201: {"model": FitDetail}})
def create_fit(params: FitParams, database: AppDatabase, session: WriteSession) -> Response:
    """Form ``auto`` fits all four forms, stores them under one ``group_id`` and answers with the chosen one."""
    # computed on a reading transaction, so that no write lock is held meanwhile
    with database.read(computes=True) as reading:
        draft = compute_fit(reading, params)
    fit = save_fit(session, draft)[draft.chosen]
    return created(describe_fit(session, fit), f"/api/v1/fits/{fit.id}")


@router.get("", summary="Fits, newest first", responses={200: {"model": FitPage}})
def list_fits(
    session: ReadSession,
    page: Page,
    model_id: str | None = None,
    calibration_id: str | None = None,
    job_id: str | None = None,
    group_id: str | None = None,
    form: Literal["additive", "multiplicative", "log_linear", "monotone"] | None = None,
    codebook: str | None = None,
    chosen: bool | None = None,
    stale: Stale = None,
) -> Response:
    """Forms that were fitted and compared together share a ``group_id``; one of them is ``chosen``.

    Residuals, a row a cell, are in ``GET /fits/{fit_id}`` alone.
    """
    wanted = {
        Fit.model_id: model_id,
        Fit.calibration_id: calibration_id,
        Fit.job_id: job_id,
        Fit.group_id: group_id,
        Fit.form: form,
        Fit.codebook: codebook,
        Fit.chosen: chosen,
    }
    query = select(Fit).options(defer(Fit.residuals, raiseload=True))
    return Answer(paginate(session, marked(filtered(query, wanted), Fit.stale_at, stale), page, _listed))


def _listed(fit: Fit) -> dict[str, Any]:
    return {name: getattr(fit, name) for name in FitListed.model_fields}


@router.get("/{fit_id}", summary="One fit, with its parameters", responses={200: {"model": FitDetail}})
def get_fit(fit_id: str, session: ReadSession) -> Response:
    """Global parameters and those of each matrix, with their intervals, and the residual of each cell."""
    return Answer(describe_fit(session, get_row(session, Fit, fit_id)))
