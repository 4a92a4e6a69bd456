"""/api/v1/workers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import Response

from results_db.tables import Worker
from server.kit.answers import Answer, page_model, row_model
from server.kit.pagination import PageQuery, paginate
from server.kit.rows import filtered
from server.kit.units import ReadSession

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="Workers, newest first", responses={200: {"model": page_model(row_model(Worker))}})
def list_workers(session: ReadSession, page: PageQuery, state: Literal["up", "down"] | None = None) -> Response:
    return Answer(paginate(session, filtered(select(Worker), {Worker.state: state}), Worker.id, page))
