"""PATCH /api/v1/jobs/{job_id}: what may be changed of a job that is there."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from results_db.queue.submit import set_priority
from server.jobs.schemas import JobRow
from server.kit.answers import Answer
from server.kit.priority import HIGHEST, LOWEST
from server.kit.units import WriteSession

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobChange(BaseModel):
    """What may be changed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 10}]})

    priority: int = Field(ge=LOWEST, le=HIGHEST)


@router.patch("/{job_id}", summary="Change a job's priority", responses={200: {"model": JobRow}})
def change_job(
    job_id: Annotated[str, Path(examples=["job_0192f3a4b5c9f1e2d3c4b5a"])], change: JobChange, session: WriteSession
) -> Response:
    """It goes before everything of lower priority from the next claim on, also before what was handed out earlier. The
    layers of a split sweep follow it; what runs is not interrupted. 409 once the job has ended."""
    return Answer(set_priority(session, job_id, change.priority))
