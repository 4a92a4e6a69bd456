"""Jobs over HTTP: what people ask of them, and their events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread
from fastapi import FastAPI
from fastapi.testclient import TestClient

from results_db import Database
from results_db.queue.events import record_event
from results_db.queue.transitions import get_job
from results_db.settings import Settings
from server.kit import sse
from tests.serving import until

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def job(client: TestClient, model: dict[str, Any]) -> dict[str, Any]:
    return dict(client.post("/api/v1/calibrations", json={"model_id": model["id"]}).json())


def events(text: str) -> list[dict[str, Any]]:
    """Parsed server-sent events; comments left out."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append(fields | {"data": json.loads(fields["data"])})
    return found


def test_cancel_retry_pause_resume(client: TestClient, job: dict[str, Any]) -> None:
    url = f"/api/v1/jobs/{job['id']}"
    assert client.post(f"{url}/pause").json()["state"] == "paused"
    assert client.post(f"{url}/resume").json()["state"] == "queued"
    assert client.post(f"{url}/cancel").json()["state"] == "cancelled"
    refused = client.post(f"{url}/cancel")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:bitbudget:problem:wrong-state")
    assert client.post(f"{url}/retry").json()["state"] == "queued"
    found = client.get(url).json()
    assert [attempt["state"] for attempt in found["attempts"]] == ["released", "cancelled", "queued"]
    assert "lease_token" not in found["attempts"][0]
    assert client.post("/api/v1/jobs/nothing/cancel").status_code == 404


def test_filters(client: TestClient, job: dict[str, Any]) -> None:
    for query, n in (("state=queued", 1), ("state=running", 0), ("kind=calibrate", 1), ("kind=fit", 0)):
        assert len(client.get(f"/api/v1/jobs?{query}").json()["items"]) == n, query
    assert client.get("/api/v1/jobs?kind=dance").status_code == 422


def test_events_from_the_first_to_the_end(client: TestClient, job: dict[str, Any]) -> None:
    url = f"/api/v1/jobs/{job['id']}"
    client.post(f"{url}/pause")
    client.post(f"{url}/cancel")
    answer = client.get(f"{url}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = events(answer.text)
    assert [e["data"]["state"] for e in found] == ["queued", "paused", "cancelled", "cancelled"]
    assert [e["event"] for e in found] == ["state", "state", "state", "end"]
    ids = [int(e["id"]) for e in found[:-1]]
    assert ids == sorted(ids)
    assert "id" not in found[-1], "a client that connects again must not ask for events after the end"
    assert found[-1]["data"]["id"] == job["id"]
    for how in ({"params": {"after": ids[0]}}, {"headers": {"Last-Event-ID": str(ids[0])}}):
        replayed = events(client.get(f"{url}/events", **how).text)  # type: ignore[arg-type]
        assert [e.get("id") for e in replayed] == [str(i) for i in ids[1:]] + [None]


@sqlite_only
def test_event_streams_refuse_nonsense(client: TestClient, job: dict[str, Any]) -> None:
    assert client.get("/api/v1/jobs/nothing/events").status_code == 404
    assert client.get("/api/v1/studies/nothing/events").status_code == 404
    assert client.get("/api/v1/events?study_id=nothing").status_code == 404
    bad = client.get(f"/api/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
    assert (bad.status_code, bad.json()["errors"][0]["field"]) == (422, "Last-Event-ID")


def test_a_study_stream_ends_with_the_study(
    client: TestClient, study_config: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    study_config["phases"] = [1]
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    run_to_end()
    found = events(client.get(f"/api/v1/studies/{study['id']}/events").text)
    assert {e["data"]["study_id"] for e in found[:-1]} == {study["id"]}
    assert (found[-1]["event"], found[-1]["data"]["state"]) == ("end", "succeeded")


def test_an_old_stream_ends_and_is_taken_up_again(
    client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "LIFETIME_S", 0.0)
    url = f"/api/v1/jobs/{job['id']}"
    first = events(client.get(f"{url}/events").text)
    assert [e["event"] for e in first] == ["state", "reconnect"]
    assert "id" not in first[-1], "the last event's id is what the client sends"
    client.post(f"{url}/pause")
    again = events(client.get("/api/v1/events", headers={"Last-Event-ID": first[0]["id"]}).text)
    assert [e["data"].get("state") for e in again] == ["paused", None]


def test_an_id_that_does_not_exist_yet_hides_nothing_to_come(
    app: FastAPI, client: TestClient, job: dict[str, Any]
) -> None:
    """A client may remember ids of a database that was restored from a backup."""

    stream = sse._follow(app.state.database, sse.Topic(), 2_000_000)
    came: list[Any] = []

    async def listen() -> None:
        came.append(await anext(stream))

    async def act_until_it_is_heard() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                while not came:
                    for action in ("pause", "resume"):
                        await to_thread.run_sync(client.post, f"/api/v1/jobs/{job['id']}/{action}")

    anyio.run(act_until_it_is_heard)
    assert json.loads(came[0].data)["job_id"] == job["id"]


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_events_wait_for_those_of_a_slower_transaction(
    app: FastAPI, client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are handed out before they are committed; SQLite has one writer at a time."""
    monkeypatch.setattr(sse, "LIFETIME_S", 0.0)
    database: Database = app.state.database

    def listen(last: str) -> list[Any]:
        return events(client.get("/api/v1/events", headers={"Last-Event-ID": last}).text)[:-1]

    (first,) = listen("0")
    with database.write() as slow:
        record_event(slow, get_job(slow, job["id"]), "note", payload={"message": "slow"})
        slow.flush()
        with database.write() as quick:
            record_event(quick, get_job(quick, job["id"]), "note", payload={"message": "quick"})
        assert listen(first["id"]) == []
    found = listen(first["id"])
    assert [e["data"]["payload"]["message"] for e in found] == ["slow", "quick"]
    assert [e["data"]["payload"]["message"] for e in listen(found[0]["id"])] == ["quick"]
    assert listen(found[1]["id"]) == []


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_stream_ends_when_its_last_events_are_settled(
    app: FastAPI, client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "LIFETIME_S", 0.0)
    url, database = f"/api/v1/jobs/{job['id']}", app.state.database
    with database.write() as slow:
        record_event(slow, get_job(slow, job["id"]), "note")
        slow.flush()
        client.post(f"{url}/cancel")
        held = events(client.get(f"{url}/events").text)
        assert [e["event"] for e in held] == ["state", "reconnect"]
    found = events(client.get(f"{url}/events", headers={"Last-Event-ID": held[0]["id"]}).text)
    assert [e["event"] for e in found] == ["note", "state", "end"]


@sqlite_only
def test_streams_are_counted_and_there_may_be_too_many(app: FastAPI, client: TestClient, job: dict[str, Any]) -> None:
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    url = f"/api/v1/jobs/{job['id']}/events"
    assert client.get(url).status_code == 200
    streams = app.state.open_streams
    assert streams.open == 0, "a stream that has ended is open no more"
    streams.open = streams.most
    answer = client.get(url)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:bitbudget:problem:too-many-streams")
    assert answer.headers["retry-after"] == "10"


@sqlite_only
@pytest.mark.timeout(60)
def test_live_events(app: FastAPI, live: str, checkpoint: Path) -> None:
    database: Database = app.state.database
    with httpx.Client(base_url=live, timeout=20) as client:
        model = client.post("/api/v1/models", json={"source": str(checkpoint)}).json()
        job = client.post("/api/v1/calibrations", json={"model_id": model["id"]}).json()
        with client.stream("GET", "/api/v1/events") as stream:
            until(lambda: app.state.open_streams.open == 1, "an open stream")
            # whoever reads slowly, or not at all, keeps no connection to the database
            until(lambda: database.engine.pool.checkedout() == 0, "the poll's end")
            lines = stream.iter_lines()
            assert job["id"] in next(line for line in lines if line.startswith("data"))
            with database.write() as session:
                record_event(session, get_job(session, job["id"]), "progress", payload={"done": 1, "total": 2})
            arrived = next(line for line in lines if line.startswith("data"))
            assert json.loads(arrived.removeprefix("data: "))["payload"] == {"done": 1, "total": 2}
        # one that was cut off as well
        until(lambda: app.state.open_streams.open == 0, "the stream's end")


@pytest.mark.quick_fault
@sqlite_only
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_open_stream_does_not_keep_the_server_from_stopping(settings: Settings, repo: Path) -> None:
    variables = {
        "BITBUDGET_DATABASE_URL": settings.database_url,
        "BITBUDGET_REDIS_URL": settings.redis_url,
        "BITBUDGET_VAR_DIR": str(settings.var_dir),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # without the time after which ``python -m server`` would cut the stream
    command = [sys.executable, "-m", "uvicorn", "server.app:create_app", "--factory", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=repo, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait_until_live(client, process)
            with client.stream("GET", "/api/v1/events") as stream:
                assert stream.status_code == 200
                process.send_signal(signal.SIGTERM)
                # the stream may be cut in its middle: a browser connects again and asks for what it missed
                with contextlib.suppress(httpx.RemoteProtocolError):
                    assert [line for line in stream.iter_lines() if line.startswith("data")] == []
        # uvicorn sends itself the signal again when all is closed
        assert process.wait(60) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def _wait_until_live(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "the server ended before it was live"
        try:
            assert client.get("/livez").status_code == 200
            return
        except httpx.ConnectError:
            time.sleep(0.05)
