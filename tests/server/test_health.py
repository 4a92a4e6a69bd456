"""/readyz names what is not ready, and /metrics counts what there is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Attempt, Worker
from server.app import create_app
from server.health.readiness import LEAST_FREE
from tests.serving import until


def checks(client: TestClient, status: int) -> dict[str, Any]:
    answer = client.get("/readyz")
    assert answer.status_code == status, answer.text
    return dict(answer.json()["checks"])


@pytest.fixture
def ready(settings: Any, redis_url: str) -> Any:
    """A server with a Redis and a turning loop."""
    app = create_app(settings.model_copy(update={"redis_url": redis_url}), page=False)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        until(lambda: app.state.loop.leads, "the loop's first turn")
        yield client


def test_a_server_that_has_all_it_needs_is_ready(ready: TestClient) -> None:
    found = checks(ready, 200)
    assert set(found) == {"database", "schema", "relay", "workers", "redis", "loop", "disk"}
    assert all(check["ok"] for check in found.values())
    assert "no worker is up" in found["workers"]["detail"]


def test_redis_and_loop_that_are_away_are_named(client: TestClient) -> None:
    found = checks(client, 503)
    assert {name for name, check in found.items() if not check["ok"]} == {"redis", "loop"}
    assert "jobs wait in the database" in found["redis"]["detail"]


def test_another_schema_is_named(client: TestClient, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    assert "the schema is at 0004" in checks(client, 503)["schema"]["detail"]


def test_a_database_that_is_away_is_named_once(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:9/none")
    monkeypatch.setattr(app.state, "database", away)
    found = checks(client, 503)
    assert "does not answer" in found["database"]["detail"]
    assert "schema" not in found
    away.dispose()


def test_a_full_disk_is_named(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=LEAST_FREE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "bitbudget gc" in checks(client, 503)["disk"]["detail"]


def test_an_attempt_that_nobody_hands_over_is_named(client: TestClient, database: Database) -> None:
    with database.write() as session:
        submit_job(session, JobKind.PROBE, {})
    assert checks(client, 503)["relay"]["ok"], "it has only just come"
    with database.write() as session:
        session.execute(update(Attempt).values(created_at=db_now(-60)))
    assert "Redis was not told" in checks(client, 503)["relay"]["detail"]
    with database.write() as session:
        session.execute(update(Attempt).values(available_at=db_now(60)))
    assert checks(client, 503)["relay"]["ok"], "it waits between two tries"


def scrape(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_metrics_count_jobs_attempts_and_requests(app: FastAPI, client: TestClient, database: Database) -> None:
    with database.write() as session:
        first = submit_job(session, JobKind.PROBE, {}).id
        submit_job(session, JobKind.PROBE, {})
        session.execute(update(Attempt).where(Attempt.job_id == first).values(created_at=db_now(-100)))
        worker = {"hostname": "here", "pid": 1, "device": "cpu", "device_kind": "cpu", "state": "up", "versions": {}}
        session.add(Worker(id="wrk_1", name="one", heartbeat_at=utc_now(), **worker))
    for job_id in (first, "job_none"):
        client.get(f"/api/v1/jobs/{job_id}")
    for word in ("BREW", "STIR"):
        client.request(word, "/jobs/1")
    app.state.open_streams.open = 3
    found = scrape(client)

    def value(name: str, **labels: str) -> float:
        return found[f"bitbudget_{name}", frozenset(labels.items())]

    assert value("jobs", kind="probe", state="queued") == 2
    assert value("attempts", state="queued") == 2
    assert 99 < value("queue_oldest_seconds") < 200
    assert (value("workers_up"), value("workers_lost_total"), value("measurements")) == (1, 0, 0)
    assert value("database_up") == 1
    route = "/api/v1/jobs/{job_id}"
    assert value("http_requests_total", method="GET", route=route, status="200") == 1
    assert value("http_requests_total", method="GET", route=route, status="404") == 1
    assert value("http_request_seconds_count", method="GET", route=route) == 2
    assert value("http_requests_total", method="other", route="none", status="404") == 2, "a caller makes no series"
    assert value("event_streams") == 3


def test_a_database_that_is_away_leaves_the_process_its_metrics(app: FastAPI, client: TestClient) -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:9/none")
    app.state.metrics.__init__(away, app.state.loop, app.state.open_streams)
    found = scrape(client)
    assert found["bitbudget_database_up", frozenset()] == 0
    assert not any(name == "bitbudget_jobs" for name, _ in found)
    away.dispose()
