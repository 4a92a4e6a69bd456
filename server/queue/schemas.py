"""The queue as the API shows it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class PauseRequest(BaseModel):
    """Why the queue is paused: shown to everybody who looks."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the card is needed"}]})

    reason: str | None = Field(None, max_length=500)


class QueueWorkers(BaseModel):
    """Workers that are up."""

    up: int
    #: that run an attempt now
    busy: int
    #: that finish what they do and end
    draining: int


class QueueRedis(BaseModel):
    """The doorbell, asked just now."""

    ok: bool
    detail: str
    #: when Redis last answered this server's relay; null where another server's relay rings
    last_contact_at: datetime | None


class QueueStatus(BaseModel):
    """The switch, and what it holds back."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "paused_at": None,
                    "reason": None,
                    "jobs": {"queued": {"sweep": 12}, "running": {"sweep": 1}, "waiting": {"fit": 1, "gate": 2}},
                    "due": 11,
                    "next_due_at": "2026-01-31T12:00:04.250000Z",
                    "workers": {"up": 1, "busy": 1, "draining": 0},
                    "redis": {
                        "ok": True,
                        "detail": "Redis answers",
                        "last_contact_at": "2026-01-31T12:00:00.100000Z",
                    },
                    "leads": True,
                }
            ]
        }
    )

    #: since when nothing is handed out or claimed; null = the queue runs
    paused_at: datetime | None
    reason: str | None
    #: jobs that have not ended: state -> kind -> how many
    jobs: dict[str, dict[str, int]]
    #: attempts that a worker may take now
    due: int
    #: when the next wait between two attempts is over; null = nothing waits
    next_due_at: datetime | None
    workers: QueueWorkers
    redis: QueueRedis
    #: whether this server turns the advance loop; false = another one on the same database does
    leads: bool
