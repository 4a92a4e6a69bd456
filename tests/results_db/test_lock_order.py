"""PostgreSQL: who holds a study or a job keeps no worker's event waiting, and two in one study never wait in a ring."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.queue.lease import claim_attempt
from results_db.queue.submit import cancel_job, retry_job, submit_job
from results_db.queue.transitions import get_job, lock_study
from results_db.states import JobKind, JobState
from results_db.tables import Model, Study

pytestmark = pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)

_PATIENCE_S = 30


@pytest.fixture
def job_id(queue: Any) -> str:
    """A queued job of a study."""
    with queue.database.write() as session:
        session.add(Model(id="mod_1", name="tiny", source="x", created_at=utc_now()))
        session.flush()
        session.add(Study(id="std_1", name="s", model_id="mod_1", state="running", config={}, on_no_go="stop"))
        session.flush()
        return str(submit_job(session, JobKind.PROBE, {}, study_id="std_1").id)


def at_once(queue: Any, *actions: Callable[[Session], Any]) -> list[Any]:
    """Each in a transaction and a thread of its own; a deadlock would be raised."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result(_PATIENCE_S) for future in [pool.submit(queue.do, action) for action in actions]]


def test_a_study_is_cancelled_while_a_worker_claims(queue: Any, job_id: str) -> None:
    attempt_id = queue.attempts(job_id)[-1].id
    both_hold = Barrier(2)

    def cancel(session: Session) -> None:
        lock_study(session, "std_1")
        both_hold.wait(_PATIENCE_S)
        cancel_job(session, job_id)

    def claim(session: Session) -> Any:
        get_job(session, job_id, lock=True)
        both_hold.wait(_PATIENCE_S)
        return claim_attempt(session, attempt_id, worker_id="wrk_1", lease_s=45.0)

    _, claimed = at_once(queue, cancel, claim)
    assert claimed is not None
    # the worker was first: it hears of the cancel at its next heartbeat
    assert queue.job(job_id).state == JobState.RUNNING
    assert queue.job(job_id).cancel_requested


def test_a_study_is_cancelled_while_a_job_of_it_is_retried(queue: Any, job_id: str) -> None:
    queue.do(cancel_job, job_id)
    retry_goes_on = Barrier(2)

    def retry(session: Session) -> None:
        retry_goes_on.wait(_PATIENCE_S)
        retry_job(session, job_id)

    def cancel(session: Session) -> None:
        lock_study(session, "std_1")
        retry_goes_on.wait(_PATIENCE_S)
        get_job(session, job_id, lock=True)

    at_once(queue, cancel, retry)
    assert queue.job(job_id).state == JobState.QUEUED
