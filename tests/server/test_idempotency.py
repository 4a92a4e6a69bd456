"""Idempotency-Key: once, whoever sends it again and however close together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError

from results_db.clock import utc_now
from results_db.settings import Settings
from results_db.tables import IdempotencyKey, Job
from results_db.tokens import Scope, create_token
from server.app import create_app
from server.kit.idempotency import HEADER, KEPT_FOR, IdempotentRoute

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


def count(app: FastAPI, table: Any) -> int:
    with app.state.database.read() as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


def test_the_same_request_is_done_once(client: TestClient, model: dict[str, Any]) -> None:
    body = {"model_id": model["id"]}
    key = {"Idempotency-Key": "once"}
    first = client.post("/api/v1/calibrations", json=body, headers=key)
    again = client.post("/api/v1/calibrations", json=body, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/api/v1/calibrations", json=body | {"windows": {"count": 2}}, headers=key)
    assert other.json()["type"] == "urn:bitbudget:problem:idempotency-key-reused"
    assert other.status_code == 422
    # the same key on another path is another key
    assert client.post(f"/api/v1/jobs/{first.json()['id']}/pause", headers=key).status_code == 200
    assert len(client.get("/api/v1/jobs").json()["items"]) == 1


def test_a_refused_request_may_be_corrected_under_its_key(client: TestClient, model: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k"}
    assert client.post("/api/v1/calibrations", json={"model_id": "nothing"}, headers=key).status_code == 404
    assert client.post("/api/v1/calibrations", json={"model_id": model["id"]}, headers=key).status_code == 202


@pytest.mark.quick_fault
def test_a_commit_that_fails_is_no_success(app: FastAPI, client: TestClient, model: dict[str, Any]) -> None:
    engine = app.state.database.engine

    def refuse(connection: Any) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(engine, "commit", refuse)
    try:
        answer = client.post(
            "/api/v1/calibrations", json={"model_id": model["id"]}, headers={"Idempotency-Key": "lost"}
        )
    finally:
        event.remove(engine, "commit", refuse)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:bitbudget:problem:database-unavailable"
    assert client.get("/api/v1/jobs").json()["items"] == []
    # the key was not spent either
    again = client.post("/api/v1/calibrations", json={"model_id": model["id"]}, headers={"Idempotency-Key": "lost"})
    assert again.status_code == 202


def at_once(n: int, send: Callable[[], httpx.Response]) -> list[httpx.Response]:
    gate = threading.Barrier(n)

    def one(_: int) -> httpx.Response:
        gate.wait(20)
        return send()

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


@pytest.mark.timeout(120)
def test_the_same_request_many_times_at_once_is_done_once(app: FastAPI, live: str, checkpoint: Any) -> None:
    with httpx.Client(base_url=live, timeout=60) as client:
        model = client.post("/api/v1/models", json={"source": str(checkpoint)}).json()
        body = {"model_id": model["id"]}
        for attempt in range(3):
            key = {HEADER: f"close together {attempt}"}
            answers = at_once(6, lambda key=key: client.post("/api/v1/calibrations", json=body, headers=key))
            assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert sum("idempotency-replayed" in answer.headers for answer in answers) == 5
        assert count(app, Job) == 3
        # what the first did is what stands in the others' way: they get its answer, not the refusal
        url = f"/api/v1/jobs/{client.get('/api/v1/jobs').json()['items'][0]['id']}/cancel"
        answers = at_once(6, lambda: client.post(url, headers={HEADER: "stop"}))
        assert {(answer.status_code, answer.json()["state"]) for answer in answers} == {(200, "cancelled")}


def test_a_key_is_forgotten_after_a_day(app: FastAPI, client: TestClient, model: dict[str, Any]) -> None:
    key, body = {HEADER: "daily"}, {"model_id": model["id"]}
    first = client.post("/api/v1/calibrations", json=body, headers=key).json()
    assert client.post("/api/v1/calibrations", json=body, headers=key).json() == first
    with app.state.database.write() as session:
        session.execute(update(IdempotencyKey).values(created_at=utc_now() - KEPT_FOR - timedelta(seconds=1)))
    assert client.post("/api/v1/calibrations", json=body, headers=key).json()["id"] != first["id"]
    assert count(app, IdempotencyKey) == 1


def test_old_keys_are_removed(app: FastAPI, client: TestClient, model: dict[str, Any]) -> None:
    body = {"model_id": model["id"]}
    for name in ("a", "b"):
        client.post("/api/v1/calibrations", json=body, headers={HEADER: name})
    with app.state.database.write() as session:
        session.execute(update(IdempotencyKey).values(created_at=utc_now() - KEPT_FOR - timedelta(seconds=1)))
    app.state.idempotency_clean_at = 0.0
    client.post("/api/v1/calibrations", json=body, headers={HEADER: "c"})
    assert count(app, IdempotencyKey) == 1


@sqlite_only
def test_a_key_belongs_to_its_sender(app: FastAPI, client: TestClient, model: dict[str, Any]) -> None:
    with app.state.database.write() as session:
        secrets = [create_token(session, name, Scope.WRITE).secret for name in ("one", "two")]
    body = {"model_id": model["id"]}
    senders = [{}, *({"Authorization": f"Bearer {secret}"} for secret in secrets)]
    made = [client.post("/api/v1/calibrations", json=body, headers=h | {HEADER: "mine"}).json()["id"] for h in senders]
    assert len(set(made)) == 3
    again = client.post("/api/v1/calibrations", json=body, headers=senders[1] | {HEADER: "mine"})
    assert again.json()["id"] == made[1]


@sqlite_only
def test_a_key_has_a_length(client: TestClient) -> None:
    for key in ("", "x" * 256):
        answer = client.post("/api/v1/jobs/nothing/cancel", headers={HEADER: key})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, HEADER)


def test_every_post_honours_it(tmp_path: Any) -> None:
    app = create_app(Settings(var_dir=tmp_path), run_loop=False, page=False)
    included = [route.original_router for route in app.routes if hasattr(route, "original_router")]
    posts = {route.path: route for router in included for route in router.routes if "POST" in route.methods}
    assert len(posts) > 15
    # a console's query changes nothing and may be answered anew
    plain = {path for path, route in posts.items() if not isinstance(route, IdempotentRoute)}
    assert all(path.startswith("/sql") for path in plain), plain
