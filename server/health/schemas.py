"""Health answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Live(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ok"}})

    status: Literal["ok"]


class CheckRow(BaseModel):
    """One check; ``detail`` only for those who may read."""

    ok: bool
    detail: str | None = None


class Readiness(BaseModel):
    """Every check by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "not ready",
                "checks": {
                    "database": {"ok": True, "detail": "postgresql answers"},
                    "redis": {"ok": False, "detail": "Redis does not answer: jobs wait in the database until it does"},
                },
            }
        }
    )

    status: Literal["ok", "not ready"]
    checks: dict[str, CheckRow]
