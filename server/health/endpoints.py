"""/livez and /readyz, at the root and under /api/v1."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.health.service import readiness
from server.kit.answers import Answer

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers; nothing else is asked")
async def livez() -> dict[str, Any]:
    return {"status": "ok"}


@router.get("/readyz", summary="Database, schema, Redis and advance loop; 503 names what is not ready")
def readyz(request: Request) -> Response:
    checks = readiness(request.app.state.database, request.app.state.loop)
    ready = all(check["ok"] for check in checks.values())
    content = {"status": "ok" if ready else "not ready", "checks": checks}
    return Answer(content, status_code=200 if ready else 503)
