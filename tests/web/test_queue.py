"""What the page shows of the queue: its switch, a worker that is drained, a job that waits for its next attempt."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from results_db import Database
from results_db.clock import utc_now
from results_db.queue.backoff import Backoff
from results_db.queue.control import pause_queue, resume_queue
from results_db.queue.lease import claim_attempt, fail_attempt
from results_db.queue.relay import due_attempts
from results_db.queue.submit import submit_job
from results_db.queue.workers import drain_worker
from results_db.states import JobKind
from results_db.tables import Worker

pytestmark = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


def test_a_paused_queue_says_since_when_and_why(client: TestClient, database: Database) -> None:
    assert "queue-paused" not in client.get("/").text
    with database.write() as session:
        pause_queue(session, "the card is <needed>")
    html = client.get("/").text
    assert 'id="queue-paused"' in html
    assert "the card is &lt;needed&gt;" in html
    assert "The queue is paused. 0 running" in html, "a screen reader hears it too"
    with database.write() as session:
        resume_queue(session)
    assert "queue-paused" not in client.get("/").text


def test_a_drained_worker_and_a_job_that_waits(client: TestClient, database: Database) -> None:
    with database.write() as session:
        row = {"device": "cpu", "device_kind": "cpu", "hostname": "h", "pid": 1}
        session.add(Worker(id="wrk_1", name="left", state="up", heartbeat_at=utc_now(), **row))
        job_id = submit_job(session, JobKind.PROBE, {}).id
        (attempt_id,) = due_attempts(session)
        claim = claim_attempt(session, attempt_id, worker_id="wrk_1", lease_s=45)
        assert claim is not None
    with database.write() as session:
        error = {"code": "database-unavailable", "message": "gone", "retryable": True}
        fail_attempt(session, claim, error, backoff=Backoff(base_s=300))
        drain_worker(session, "wrk_1")
    assert "draining" in client.get("/").text
    job = client.get(f"/jobs/{job_id}").text
    assert "tried again <time datetime=" in job
    assert "tried again in" in job, "and the history says how long it waits"
