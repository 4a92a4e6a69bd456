"""`bitbudget queue`, `workers` and `jobs priority`, on the real API in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from results_db import Database
from results_db.clock import utc_now
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job, Worker
from tests.cli.conftest import serving


@pytest.fixture
def served(tmp_path: Path, sqlite_template: Path) -> Iterator[TestClient]:
    """An application for each test: they count what is in it."""
    with serving(Path(shutil.copy(sqlite_template, tmp_path))) as client:
        yield client


@pytest.fixture
def database(served: TestClient) -> Database:
    return served.app.state.database  # type: ignore[attr-defined, no-any-return]


def add_worker(database: Database) -> str:
    with database.write() as session:
        row = {"device": "cpu", "device_kind": "cpu", "hostname": "h", "pid": 1}
        session.add(Worker(id="wrk_1", name="left", state="up", heartbeat_at=utc_now(), **row))
    return "wrk_1"


def test_the_switch(ask: Callable, database: Database) -> None:
    with database.write() as session:
        submit_job(session, JobKind.PROBE, {})
    shown = ask("queue", "show")
    assert "the queue runs" in shown.out + shown.err
    assert "0 workers up, 0 busy; 1 attempts due" in shown.out + shown.err
    assert "Redis does not answer" in shown.out + shown.err
    paused = ask("queue", "pause", "--reason", "the card is needed")
    assert ": the card is needed" in paused.out + paused.err
    assert ask("queue", "show", "--json").json["due"] == 0
    assert ask("queue", "resume", "--json").json["paused_at"] is None


def test_a_worker_is_drained(ask: Callable, database: Database) -> None:
    worker = add_worker(database)
    assert "left" in ask("workers", "list").out
    told = ask("workers", "drain", worker)
    assert told.code == 0
    assert "left finishes what it does" in told.out + told.err
    assert "draining" in ask("workers", "list", "--state", "up").out
    assert ask("workers", "list", "--json").json[0]["drain_requested"]
    assert ask("workers", "drain", "wrk_none").code == 2


def test_a_job_is_hurried(ask: Callable, database: Database) -> None:
    with database.write() as session:
        job_id = submit_job(session, JobKind.PROBE, {}).id
    assert "with priority 10" in "".join(vars(ask("jobs", "priority", job_id, "10"))[s] for s in ("out", "err"))
    with database.read() as session:
        assert session.get_one(Job, job_id).priority == 10
    assert ask("jobs", "priority", job_id, "1000").code == 2
