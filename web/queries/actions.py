"""What a person may do to a job or a study now: the buttons of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from results_db.states import TERMINAL, WORKER_KINDS, JobState, StudyState
from results_db.tables import Job, Study
from web.queries.steps import step_label

_API = "/api/v1"
_FAILED = (JobState.FAILED, JobState.DEAD)


@dataclass(frozen=True, slots=True)
class Action:
    """One button: a POST to ``url`` with the JSON ``body``; ``question`` is asked before."""

    name: str
    label: str
    url: str
    body: str = ""
    question: str = ""


def job_actions(job: Job) -> tuple[Action, ...]:
    """By its state; what was asked for already is not offered again."""
    state = JobState(job.state)
    url = f"{_API}/jobs/{job.id}"
    if state == JobState.SUCCEEDED:
        return ()
    if state in TERMINAL:
        return (Action("retry", "Retry", f"{url}/retry"),)
    found = []
    # a fit, an allocation, a gate ends within moments of its start
    can_stop = state != JobState.RUNNING or job.kind in WORKER_KINDS
    if state == JobState.PAUSED or (job.pause_requested and not job.cancel_requested):
        found.append(Action("resume", "Resume", f"{url}/resume"))
    elif can_stop and not job.cancel_requested:
        found.append(Action("pause", "Pause", f"{url}/pause"))
    if not job.cancel_requested:
        question = f"Cancel {step_label(job)}? What it has recorded stays; steps that need it will be skipped."
        found.append(Action("cancel", "Cancel", f"{url}/cancel", question=question))
    return tuple(found)


def study_actions(study: Study, jobs: Sequence[Job], *, stale: bool = False) -> tuple[Action, ...]:
    """Cancel while it runs; retry what failed, in one request; compute again what is stale once it has ended."""
    found = []
    failed = sum(job.state in _FAILED for job in jobs)
    if failed:
        body = json.dumps({"study_id": study.id, "state": [state.value for state in _FAILED]})
        label = f"Retry {failed} failed {'job' if failed == 1 else 'jobs'}"
        found.append(Action("retry", label, f"{_API}/jobs/retry", body=body))
    if study.state == StudyState.RUNNING:
        question = (
            f"Cancel the study {study.name}? What runs stops, what waits does not start, what was measured stays."
        )
        found.append(Action("cancel", "Cancel study", f"{_API}/studies/{study.id}/cancel", question=question))
    elif stale:
        question = f"Compute {study.name} again, as a new study? Only what is missing is measured."
        found.append(Action("recompute", "Compute again", f"{_API}/studies/{study.id}/recompute", question=question))
    return tuple(found)
