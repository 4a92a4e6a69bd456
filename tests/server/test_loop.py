"""The advance loop: parts that fail do not take the others along, lost workers, orphans, the thread itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from results_db import Database
from results_db.queue.leader import Leader
from results_db.queue.lease import claim_attempt
from results_db.queue.submit import submit_job
from results_db.queue.transitions import get_job
from results_db.settings import Settings
from results_db.states import JobKind, JobState
from results_db.tables import Attempt, Job, JobEvent
from server.app import create_app
from server.loop import AdvanceLoop
from server.runner import _COMPUTE
from tests.serving import until

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def loop(app: FastAPI, client: TestClient) -> AdvanceLoop:
    found: AdvanceLoop = app.state.loop
    return found


def add_job(database: Database, kind: JobKind, params: dict[str, Any]) -> str:
    with database.write() as session:
        return submit_job(session, kind, params).id


def job_of(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return get_job(session, job_id)


def test_a_server_job_that_cannot_run_fails_with_its_cause(loop: AdvanceLoop, model: dict[str, Any]) -> None:
    missing = add_job(loop.database, JobKind.FIT, {"model_id": "nothing"})
    early = add_job(loop.database, JobKind.FIT, {"model_id": model["id"]})
    wrong = add_job(loop.database, JobKind.ALLOCATE, {"model_id": model["id"], "name": "x", "kind": "uniform"})
    broken = add_job(loop.database, JobKind.FIT, {"nonsense": 1})
    while loop.turn():
        pass
    assert loop.last_error is None
    codes = {}
    for job_id in (missing, early, wrong, broken):
        job = job_of(loop.database, job_id)
        assert job.state == JobState.FAILED
        assert job.error is not None
        assert job.error["traceback"].startswith("Traceback")
        codes[job_id] = job.error["code"]
    assert list(codes.values()) == ["not-found", "calibration-missing", "invalid-request", "unexpected-error"]


def test_an_orphaned_server_job_runs_again(loop: AdvanceLoop, model: dict[str, Any]) -> None:
    job_id = add_job(loop.database, JobKind.FIT, {"model_id": model["id"]})
    with loop.database.write() as session:
        get_job(session, job_id).state = JobState.RUNNING.value
    while loop.turn():
        pass
    assert job_of(loop.database, job_id).state == JobState.FAILED


def test_a_lost_worker_is_noticed(loop: AdvanceLoop, make_worker: Any) -> None:
    worker = make_worker()
    job_id = add_job(loop.database, JobKind.CALIBRATE, {"model_id": "m"})
    with loop.database.write() as session:
        attempt_id = session.scalars(select(Attempt.id)).one()
        assert claim_attempt(session, attempt_id, worker_id=worker.worker_id, lease_s=-1)
    assert loop.turn()
    assert job_of(loop.database, job_id).state == JobState.QUEUED
    with loop.database.read() as session:
        assert [a.state for a in session.scalars(select(Attempt).order_by(Attempt.number))] == ["lost", "queued"]
        assert "worker_lost" in session.scalars(select(JobEvent.kind)).all()


@sqlite_only
def test_a_part_that_fails_keeps_no_other_from_running(
    loop: AdvanceLoop, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("server.loop.has_expired", explode)
    job_id = add_job(loop.database, JobKind.FIT, {"model_id": model["id"]})
    loop.turn()
    assert job_of(loop.database, job_id).state == JobState.FAILED
    assert loop.last_error is not None
    assert "boom" in loop.last_error
    assert "Traceback" in caplog.text
    monkeypatch.undo()
    loop.turn()
    assert loop.last_error is None


@sqlite_only
def test_an_idle_turn_writes_nothing(loop: AdvanceLoop) -> None:
    class Refuses(Database):
        def write(self) -> Any:
            raise AssertionError("an idle turn must not take the write lock")

    loop.database = Refuses(str(loop.database.url.render_as_string(hide_password=False)))
    assert not loop.turn()
    assert loop.last_error is None


def test_the_thread_turns_until_the_server_stops(settings: Settings, redis_url: str, checkpoint: Any) -> None:
    app = create_app(settings.model_copy(update={"redis_url": redis_url}), page=False)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/readyz").json()["status"] == "ok"
        model = client.post("/api/v1/models", json={"source": str(checkpoint)}).json()
        job = client.post("/api/v1/calibrations", json={"model_id": model["id"]}).json()
        path = f"/api/v1/jobs/{job['id']}"
        until(lambda: client.get(path).json()["attempts"][0]["enqueued_at"] is not None, "its way to Redis")
    assert not app.state.loop.alive


@dataclass
class Computation:
    """A fit that computes until it is told to end."""

    began: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    n_begun: int = 0

    def __call__(self, session: Session, job: Job) -> Any:
        self.n_begun += 1
        self.began.set()
        assert self.may_end.wait(30)
        session.execute(text("SELECT 1"))
        return lambda session, job: {}


@pytest.fixture
def computation(monkeypatch: pytest.MonkeyPatch) -> Computation:
    found = Computation()
    monkeypatch.setitem(_COMPUTE, JobKind.FIT, found)
    return found


@pytest.fixture
def turning(loop: AdvanceLoop, computation: Computation) -> Iterator[AdvanceLoop]:
    """The loop in its thread, at the first job of the server's own."""
    loop.period_s = 0.05
    loop.start()
    yield loop
    computation.may_end.set()
    loop.stop()


@pytest.mark.quick_fault
def test_a_long_server_job_keeps_no_worker_waiting(
    turning: AdvanceLoop, computation: Computation, model: dict[str, Any], make_worker: Any
) -> None:
    worker_id = make_worker().worker_id
    fit_id = add_job(turning.database, JobKind.FIT, {"model_id": model["id"]})
    assert computation.began.wait(30)
    job_id = add_job(turning.database, JobKind.CALIBRATE, {"model_id": "m"})
    with turning.database.write() as session:
        attempt_id = session.scalars(select(Attempt.id)).one()
        assert claim_attempt(session, attempt_id, worker_id=worker_id, lease_s=-1)
    until(lambda: job_of(turning.database, job_id).state == JobState.QUEUED, "the lost attempt's job queued again")
    assert job_of(turning.database, fit_id).state == JobState.RUNNING
    computation.may_end.set()
    until(lambda: job_of(turning.database, fit_id).state == JobState.SUCCEEDED, "the end of the fit")
    assert turning.last_error is None


@pytest.mark.quick_fault
@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_server_job_outlasts_every_limit_of_silence(
    loop: AdvanceLoop, computation: Computation, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the session that holds the right to turn nor the one that the job reads from is ended meanwhile."""
    limit_s = 1.5
    monkeypatch.setattr("results_db.queue.leader._SILENCE_S", limit_s)
    job_id = add_job(loop.database, JobKind.FIT, {"model_id": model["id"]})
    url = loop.database.url.render_as_string(hide_password=False)
    database, other = Database(url, idle_limit_s=limit_s), Database(url)
    leading, standby = AdvanceLoop(database, loop.relay, period_s=0.05), Leader(other)
    holder = text(
        "SELECT extract(epoch FROM query_start) FROM pg_stat_activity JOIN pg_locks USING (pid)"
        " WHERE locktype = 'advisory' AND pg_locks.database = (SELECT oid FROM pg_database"
        " WHERE datname = current_database())"
    )

    def said() -> float:
        """When the session that holds the right last said something."""
        assert not standby.hold(), "the right lapsed while the job computed"
        with other.read() as session:
            return float(session.scalars(holder).one())

    leading.start()
    try:
        assert computation.began.wait(30)
        began = said()
        until(lambda: said() - began > 1.5 * limit_s, "words of the leader after the limit")
    finally:
        computation.may_end.set()
        until(lambda: job_of(other, job_id).state != JobState.RUNNING, "the end of the fit")
        leading.stop()
        standby.release()
        database.dispose()
        other.dispose()
    job = job_of(loop.database, job_id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    assert computation.n_begun == 1
