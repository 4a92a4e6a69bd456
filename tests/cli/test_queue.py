"""`bitbudget queue`, `workers` and `jobs priority`, on the real API in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from cli.api import Api
from results_db import Database
from results_db.clock import utc_now
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Job, Worker
from server.app import create_app

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
pytestmark = sqlite_only


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of an API that the commands reach; its Redis is nowhere."""
    settings = Settings(database_url=database_url, var_dir=tmp_path / "var", redis_url=f"unix://{tmp_path}/none.sock")
    app = create_app(settings, run_loop=False, page=False)
    with TestClient(app, base_url="http://localhost") as client:

        def answer(request: httpx.Request) -> httpx.Response:
            found = client.request(
                request.method, str(request.url), content=request.content, headers=dict(request.headers)
            )
            return httpx.Response(found.status_code, content=found.content, headers=dict(found.headers))

        def connect(_server: str | None) -> Api:
            return Api("http://localhost", transport=httpx.MockTransport(answer))

        monkeypatch.setattr("cli.commands.queue.connect", connect)
        monkeypatch.setattr("cli.commands.jobs.connect", connect)
        yield app.state.database


def add_worker(database: Database) -> str:
    with database.write() as session:
        row = {"device": "cpu", "device_kind": "cpu", "hostname": "h", "pid": 1}
        session.add(Worker(id="wrk_1", name="left", state="up", heartbeat_at=utc_now(), **row))
    return "wrk_1"


def test_the_switch(bitbudget: Callable, database: Database) -> None:
    with database.write() as session:
        submit_job(session, JobKind.PROBE, {})
    shown = bitbudget("queue", "show")
    assert "the queue runs" in shown.out + shown.err
    assert "0 workers up, 0 busy; 1 attempts due" in shown.out + shown.err
    assert "Redis does not answer" in shown.out + shown.err
    paused = bitbudget("queue", "pause", "--reason", "the card is needed")
    assert ": the card is needed" in paused.out + paused.err
    assert bitbudget("queue", "show", "--json").json["due"] == 0
    assert bitbudget("queue", "resume", "--json").json["paused_at"] is None


def test_a_worker_is_drained(bitbudget: Callable, database: Database) -> None:
    worker = add_worker(database)
    assert "left" in bitbudget("workers", "list").out
    told = bitbudget("workers", "drain", worker)
    assert told.code == 0
    assert "left finishes what it does" in told.out + told.err
    assert "draining" in bitbudget("workers", "list", "--state", "up").out
    assert bitbudget("workers", "list", "--json").json[0]["drain_requested"]
    assert bitbudget("workers", "drain", "wrk_none").code == 2


def test_a_job_is_hurried(bitbudget: Callable, database: Database) -> None:
    with database.write() as session:
        job_id = submit_job(session, JobKind.PROBE, {}).id
    assert "with priority 10" in "".join(vars(bitbudget("jobs", "priority", job_id, "10"))[s] for s in ("out", "err"))
    with database.read() as session:
        assert session.get_one(Job, job_id).priority == 10
    assert bitbudget("jobs", "priority", job_id, "1000").code == 2
