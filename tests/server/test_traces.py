"""What the server logs of a job carries the trace id of the request that submitted it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from results_db import Database
from results_db.clock import db_now
from results_db.logs import configure_logs
from results_db.queue.lease import claim_attempt
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Attempt, Job
from tests.server.simulated import SimulatedWorker

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def log_lines() -> Iterator[Any]:
    """The JSON lines that were logged since the test began."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = [*root.handlers], root.level
    configure_logs("json", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_lost_worker_is_told_with_the_trace(
    app: FastAPI, client: TestClient, database: Database, log_lines: Any
) -> None:
    body = {"seconds": 1, "configs": [{"b_q": 2, "rank": 0, "codebook": "rtn"}]}
    answer = client.post("/api/v1/probes", json=body, headers={"X-Trace-Id": TRACE})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    worker = SimulatedWorker(database)
    with database.write() as session:
        attempt_id = session.scalars(select(Attempt.id).where(Attempt.job_id == job_id)).one()
        claim = claim_attempt(session, attempt_id, worker_id=worker.worker_id, lease_s=60)
        assert claim is not None
        assert claim.trace_id == TRACE
        session.execute(update(Attempt).values(lease_expires_at=db_now(-1)))
    app.state.loop.turn()
    (line,) = [line for line in log_lines() if "lost its worker" in line["message"]]
    ids = {"trace_id": TRACE, "job_id": job_id, "attempt_id": attempt_id}
    assert {name: line[name] for name in ids} == ids
    assert [line["status"] for line in log_lines() if line["logger"] == "server.access"] == [202]


def test_a_server_job_that_fails_is_told_with_the_trace(
    app: FastAPI, client: TestClient, database: Database, log_lines: Any
) -> None:
    with database.write() as session:
        params = {"model_id": "mod_none", "calibration_id": "cal_none"}
        job_id = submit_job(session, JobKind.FIT, params, trace_id=TRACE).id
    while app.state.loop.turn():
        pass
    with database.read() as session:
        assert session.get_one(Job, job_id).state == "failed"
    (line,) = [line for line in log_lines() if line["logger"] == "server.runner"]
    assert (line["trace_id"], line["job_id"], line["level"]) == (TRACE, job_id, "warning")
