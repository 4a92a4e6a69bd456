"""Jobs as the API shows them."""

from __future__ import annotations

from starlette.responses import Response

from results_db.tables import Attempt, Job
from server.kit.answers import accepted, page_model, row_model

AttemptRow = row_model(Attempt, without=("lease_token",))
JobRow = row_model(Job)
#: ``parts``: ids of the jobs that it is split into
JobDetail = row_model(Job, "JobDetail", attempts=list[AttemptRow], parts=list[str])  # type: ignore[valid-type]
JobPage = page_model(JobRow)
#: of a job that was submitted although there is something to know before
WarnedJobRow = row_model(Job, "JobWithWarning", warning=str | None)


def job_accepted(job: Job) -> Response:
    """202: the job's row, and where to follow it."""
    return accepted(job, f"/api/v1/jobs/{job.id}")


def job_accepted_with(job: Job, warning: str | None) -> Response:
    """The same with a field ``warning``, null where there is nothing to warn of."""
    return accepted(job.as_dict() | {"warning": warning}, f"/api/v1/jobs/{job.id}")
