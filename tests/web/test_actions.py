"""Which buttons a job and a study have: those that the API would not refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from results_db import Database
from results_db.errors import WrongState
from results_db.queue.submit import cancel_job, pause_job, resume_job, retry_job
from results_db.states import JobState
from results_db.tables import Job, Study
from web.queries.actions import job_actions, study_actions


def job(state: str, kind: str = "sweep", **values: Any) -> Job:
    asked = {"cancel_requested": False, "pause_requested": False, "params": {}} | values
    return Job(id="job_1", kind=kind, state=state, step="sweep:a", **asked)


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (job("waiting"), ["pause", "cancel"]),
        (job("queued"), ["pause", "cancel"]),
        (job("running"), ["pause", "cancel"]),
        (job("running", "fit"), ["cancel"]),
        (job("running", pause_requested=True), ["resume", "cancel"]),
        (job("running", cancel_requested=True), []),
        (job("paused"), ["resume", "cancel"]),
        (job("succeeded"), []),
        (job("failed"), ["retry"]),
        (job("dead"), ["retry"]),
        (job("cancelled"), ["retry"]),
        (job("skipped"), ["retry"]),
    ],
    ids=lambda value: value.state if isinstance(value, Job) else None,
)
def test_a_job_offers_what_its_state_allows(of: Job, names: list[str]) -> None:
    found = job_actions(of)
    assert [action.name for action in found] == names
    assert all(action.url == f"/api/v1/jobs/job_1/{action.name}" for action in found)
    assert all(bool(action.question) == (action.name == "cancel") for action in found)


ORDERS = {"pause": pause_job, "resume": resume_job, "cancel": cancel_job, "retry": retry_job}


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_what_is_offered_is_what_the_queue_takes(database: Database) -> None:
    """Of a job of which nothing was asked yet, in each state."""

    def takes(state: str, kind: str, name: str) -> bool:
        with database.write() as session:
            session.add(job(state, kind))
            session.flush()
            try:
                ORDERS[name](session, "job_1")
            except WrongState:
                return False
            finally:
                session.rollback()
        return True

    for state in JobState:
        for kind in ("sweep", "fit"):
            taken = {name for name in ORDERS if takes(state, kind, name)}
            assert {action.name for action in job_actions(job(state, kind))} == taken, (state, kind)


def test_a_study_retries_what_failed_in_one_request() -> None:
    study = Study(id="study_1", name="demo", state="failed")
    (retry,) = study_actions(study, [job("failed"), job("dead"), job("cancelled"), job("succeeded")])
    assert (retry.label, retry.url) == ("Retry 2 failed jobs", "/api/v1/jobs/retry")
    assert json.loads(retry.body) == {"study_id": "study_1", "state": ["failed", "dead"]}
    running = Study(id="study_1", name="demo", state="running")
    assert [action.name for action in study_actions(running, [])] == ["cancel"]
    ended = Study(id="study_1", name="demo", state="succeeded")
    assert study_actions(ended, []) == ()
    (again,) = study_actions(ended, [], stale=True)
    assert (again.label, again.url) == ("Compute again", "/api/v1/studies/study_1/recompute")
    assert [action.name for action in study_actions(running, [], stale=True)] == ["cancel"]
