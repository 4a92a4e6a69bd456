"""/api/v1/queue, draining, priorities: what people see and say, and two servers on one database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from results_db import Database
from results_db.queue.lease import claim_attempt
from results_db.queue.promote import next_server_job
from results_db.queue.relay import due_attempts
from results_db.queue.submit import submit_job
from results_db.queue.transitions import get_job, queue_job
from results_db.settings import Settings
from results_db.states import JobKind, JobState
from results_db.tables import Attempt, Job, JobEvent
from server.app import create_app
from server.runner import run_server_job
from tests.serving import until

API = "/api/v1"


@pytest.fixture
def database(app: FastAPI, client: TestClient) -> Database:
    found: Database = app.state.database
    return found


def add_job(database: Database, kind: JobKind = JobKind.PROBE, **options: Any) -> str:
    with database.write() as session:
        return submit_job(session, kind, {"model_id": "m"}, **options).id


def problem(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["type"].rpartition(":")[2]


def test_the_switch(client: TestClient, database: Database) -> None:
    add_job(database)
    shown = client.get(f"{API}/queue").json()
    assert (shown["paused_at"], shown["jobs"], shown["due"]) == (None, {"queued": {"probe": 1}}, 1)
    assert shown["workers"] == {"up": 0, "busy": 0, "draining": 0}
    assert not shown["redis"]["ok"]
    assert shown["redis"]["last_contact_at"] is None
    paused = client.post(f"{API}/queue/pause", json={"reason": "the card is needed"}).json()
    assert paused["paused_at"].endswith("Z")
    assert (paused["reason"], paused["due"]) == ("the card is needed", 0)
    assert client.post(f"{API}/queue/pause").json()["reason"] is None, "a body is not needed"
    resumed = client.post(f"{API}/queue/resume").json()
    assert (resumed["paused_at"], resumed["due"]) == (None, 1)
    assert problem(client.post(f"{API}/queue/pause", json={"why": "x"})) == (422, "invalid-request")


def test_a_worker_is_drained(client: TestClient, database: Database, make_worker: Any) -> None:
    worker = make_worker()
    job_id = add_job(database)
    with database.write() as session:
        (attempt_id,) = due_attempts(session)
        assert claim_attempt(session, attempt_id, worker_id=worker.worker_id, lease_s=60)
    assert client.get(f"{API}/queue").json()["workers"] == {"up": 1, "busy": 1, "draining": 0}
    for _ in range(2):
        answer = client.post(f"{API}/workers/{worker.worker_id}/drain")
        assert (answer.status_code, answer.json()["drain_requested"]) == (200, True)
    assert client.get(f"{API}/queue").json()["workers"]["draining"] == 1
    assert client.get(f"{API}/jobs/{job_id}").json()["state"] == "running"
    assert problem(client.post(f"{API}/workers/wrk_none/drain")) == (404, "not-found")


def test_priority_on_submission_and_later(client: TestClient, database: Database, model: dict[str, Any]) -> None:
    body = {"model_id": model["id"]}
    jobs = {
        priority: client.post(f"{API}/calibrations", params={"priority": priority}, json=body).json()
        for priority in (0, 5, -5)
    }
    assert {job["priority"] for job in jobs.values()} == {0, 5, -5}

    def order() -> list[str]:
        with database.read() as session:
            return [session.get_one(Attempt, id_).job_id for id_ in due_attempts(session)]

    assert order() == [jobs[5]["id"], jobs[0]["id"], jobs[-5]["id"]]
    changed = client.patch(f"{API}/jobs/{jobs[-5]['id']}", json={"priority": 9})
    assert (changed.status_code, changed.json()["priority"]) == (200, 9)
    assert order()[0] == jobs[-5]["id"]
    client.post(f"{API}/jobs/{jobs[0]['id']}/cancel")
    assert problem(client.patch(f"{API}/jobs/{jobs[0]['id']}", json={"priority": 1})) == (409, "wrong-state")
    assert problem(client.patch(f"{API}/jobs/job_none", json={"priority": 1})) == (404, "not-found")
    for wrong in ({"priority": 101}, {"priority": "high"}, {"state": "running"}, {}):
        assert problem(client.patch(f"{API}/jobs/{jobs[5]['id']}", json=wrong)) == (422, "invalid-request")
    wrong_query = client.post(f"{API}/calibrations", params={"priority": 1000}, json=body)
    assert problem(wrong_query) == (422, "invalid-request")


def test_the_layers_of_a_sweep_follow_its_priority(
    client: TestClient, model: dict[str, Any], run_to_end: Callable[[], None]
) -> None:
    client.post(f"{API}/calibrations", json={"model_id": model["id"]})
    run_to_end()
    body = {"model_id": model["id"], "configs": [{"b_q": 5, "rank": 1, "codebook": "scalar"}]}
    whole = client.post(f"{API}/sweeps", params={"priority": 4}, json=body).json()
    shown = client.get(f"{API}/jobs/{whole['id']}").json()
    assert shown["parts"]
    assert {client.get(f"{API}/jobs/{part}").json()["priority"] for part in shown["parts"]} == {4}
    client.patch(f"{API}/jobs/{whole['id']}", json={"priority": 6})
    assert {client.get(f"{API}/jobs/{part}").json()["priority"] for part in shown["parts"]} == {6}


# --- two servers ---------------------------------------------------------------------------------------------------


def test_of_two_servers_one_turns_and_the_other_takes_over(
    settings: Settings, redis_url: str, model: dict[str, Any]
) -> None:
    shared = settings.model_copy(update={"redis_url": redis_url})
    first, second = create_app(shared, page=False), create_app(shared, page=False)

    def detail(client: TestClient) -> str:
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        return str(ready.json()["checks"]["loop"]["detail"])

    def wait_for(client: TestClient, words: str) -> None:
        until(lambda: words in detail(client), words)

    with TestClient(second, base_url="http://localhost") as two:
        wait_for(two, "loop turns")
        with TestClient(first, base_url="http://localhost") as one:
            wait_for(one, "stands by")
            # both answer, and the job runs once
            job_ids = [add_job(first.state.database, JobKind.FIT) for _ in range(3)]
            ended = lambda: {one.get(f"{API}/jobs/{id_}").json()["state"] for id_ in job_ids} == {"failed"}  # noqa: E731
            until(ended, "the end of the jobs")
            with second.state.database.read() as session:
                events = session.scalars(select(JobEvent.state).where(JobEvent.job_id.in_(job_ids))).all()
            assert [events.count(state) for state in ("queued", "running", "failed")] == [3, 3, 3]
        # the second leads; it leaves, and a third takes over
        third = create_app(shared, page=False)
        with TestClient(third, base_url="http://localhost") as three:
            wait_for(three, "stands by")
            second.state.loop.stop()
            wait_for(three, "loop turns")


def test_a_server_that_was_frozen_in_a_job_stores_nothing(
    client: TestClient, database: Database, model: dict[str, Any]
) -> None:
    """Another server runs the job anew meanwhile: only its end counts."""
    job_id = add_job(database, JobKind.FIT)
    with database.write() as session:
        stale = next_server_job(session)
    assert stale is not None
    with database.write() as session:
        queue_job(session, get_job(session, job_id, lock=True))
        fresh = next_server_job(session)
    assert fresh is not None
    run_server_job(database, stale)
    with database.read() as session:
        assert session.get_one(Job, job_id).state == JobState.RUNNING
    run_server_job(database, fresh)
    with database.read() as session:
        assert session.get_one(Job, job_id).state == JobState.FAILED
