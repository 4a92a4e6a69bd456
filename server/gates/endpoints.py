"""/api/v1/gates."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Gate
from server.kit.answers import Answer, page_model, row_model
from server.kit.pagination import PageRequest, listing, paginate
from server.kit.rows import Stale, filtered, marked
from server.kit.units import ReadSession

router = APIRouter(prefix="/gates", tags=["gates"])

Page = Annotated[PageRequest, Depends(listing(Gate, "created_at", "phase", "name", "verdict", "value"))]


@router.get("", summary="Gates, newest first", responses={200: {"model": page_model(row_model(Gate))}})
def list_gates(
    session: ReadSession,
    page: Page,
    study_id: str | None = None,
    phase: Annotated[int | None, Query(ge=0, le=6)] = None,
    name: str | None = None,
    verdict: Literal["GO", "NO-GO", "NOT DECIDABLE", "NOT MEASURED"] | None = None,
    stale: Stale = None,
) -> Response:
    """Verdicts with the number, its interval and the threshold that they rest on."""
    filters = {Gate.study_id: study_id, Gate.phase: phase, Gate.name: name, Gate.verdict: verdict}
    return Answer(paginate(session, marked(filtered(select(Gate), filters), Gate.stale_at, stale), page))
