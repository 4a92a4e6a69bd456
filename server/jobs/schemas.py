"""Jobs as the API shows them."""

from __future__ import annotations

from starlette.responses import Response

from results_db.tables import Attempt, Job
from server.kit.answers import accepted, page_model, row_model

AttemptRow = row_model(Attempt)
JobRow = row_model(Job)
JobPage = page_model(JobRow)


def job_accepted(job: Job) -> Response:
    """202: the job's row, and where to follow it."""
    return accepted(job, f"/api/v1/jobs/{job.id}")
