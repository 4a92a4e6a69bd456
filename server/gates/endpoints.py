"""/api/v1/gates."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Gate
from server.kit.answers import Answer, page_model, row_model
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered
from server.kit.units import ReadSession

router = APIRouter(prefix="/gates", tags=["gates"])


@router.get("", summary="Gates, newest first", responses={200: {"model": page_model(row_model(Gate))}})
def list_gates(
    session: ReadSession,
    page: PageQuery,
    study_id: str | None = None,
    phase: Annotated[int | None, Query(ge=0, le=6)] = None,
) -> Response:
    return Answer(
        paginate(session, filtered(select(Gate), {Gate.study_id: study_id, Gate.phase: phase}), Gate.id, page)
    )
