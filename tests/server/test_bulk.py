"""Many jobs cancelled or retried at once: each for itself, in short transactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from results_db.tables import Job, JobEvent
from server.jobs import bulk

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def jobs(client: TestClient, model: dict[str, Any]) -> list[str]:
    """Four queued jobs."""
    body = {"model_id": model["id"]}
    return [client.post("/api/v1/calibrations", json=body).json()["id"] for _ in range(4)]


def states(client: TestClient) -> dict[str, str]:
    return {job["id"]: job["state"] for job in client.get("/api/v1/jobs").json()["items"]}


def outcomes(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 200, answer.text
    return [(item["id"], item["outcome"]) for item in answer.json()["items"]]


def test_one_refusal_does_not_lose_the_others(
    client: TestClient, jobs: list[str], make_worker: Callable[..., Any]
) -> None:
    make_worker().run_all()
    # the worker's four are over; a fifth is queued
    fifth = client.post("/api/v1/probes", json={})
    assert fifth.status_code == 202, fifth.text
    id_ = fifth.json()["id"]
    answer = client.post("/api/v1/jobs/cancel", json={"ids": [jobs[0], "nothing", id_, id_]})
    assert outcomes(answer) == [(jobs[0], "refused"), ("nothing", "refused"), (id_, "changed")]
    first, second, third = answer.json()["items"]
    assert (first["problem"], first["state"]) == ("wrong-state", "succeeded")
    assert "already succeeded" in first["detail"]
    assert (second["problem"], second["state"]) == ("not-found", None)
    assert (third["problem"], third["state"]) == (None, "cancelled")
    assert (answer.json()["changed"], answer.json()["refused"], answer.json()["left"]) == (1, 2, 0)
    assert states(client)[id_] == "cancelled"


def test_cancel_then_retry_by_filter_and_again(client: TestClient, jobs: list[str], model: dict[str, Any]) -> None:
    ids = {"ids": jobs[:3]}
    assert {outcome for _, outcome in outcomes(client.post("/api/v1/jobs/cancel", json=ids))} == {"changed"}
    again = client.post("/api/v1/jobs/cancel", json=ids)
    assert {outcome for _, outcome in outcomes(again)} == {"unchanged"}
    filters = {"state": ["cancelled", "failed"], "kind": ["calibrate"], "model_id": model["id"]}
    assert sorted(outcomes(client.post("/api/v1/jobs/retry", json=filters))) == [(id_, "changed") for id_ in jobs[:3]]
    assert set(states(client).values()) == {"queued"}
    # sent again it finds nothing, and by ids nothing to do
    assert outcomes(client.post("/api/v1/jobs/retry", json=filters)) == []
    assert outcomes(client.post("/api/v1/jobs/retry", json=ids)) == [(id_, "unchanged") for id_ in jobs[:3]]


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(
    app: FastAPI, client: TestClient, jobs: list[str]
) -> None:
    client.post(f"/api/v1/jobs/{jobs[0]}/pause")
    before = client.get("/api/v1/jobs").json()
    with app.state.database.read() as session:
        n_events = session.scalar(select(func.count()).select_from(JobEvent))
    answer = client.post("/api/v1/jobs/cancel", json={"kind": ["calibrate"], "dry_run": True})
    assert answer.json()["dry_run"]
    assert [item["state"] for item in answer.json()["items"]] == ["cancelled"] * 4
    assert client.get("/api/v1/jobs").json() == before
    with app.state.database.read() as session:
        assert session.scalar(select(func.count()).select_from(JobEvent)) == n_events


def test_the_same_key_does_it_once(client: TestClient, jobs: list[str]) -> None:
    key = {"Idempotency-Key": "all of them"}
    first = client.post("/api/v1/jobs/cancel", json={"ids": jobs}, headers=key)
    again = client.post("/api/v1/jobs/cancel", json={"ids": jobs}, headers=key)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json()["changed"] == 4


def test_a_failed_study_is_retried_from_its_first_failure(
    client: TestClient,
    study_config: dict[str, Any],
    run_to_end: Callable[..., None],
    make_worker: Callable[..., Any],
) -> None:
    study_config["phases"] = [1]
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    run_to_end(make_worker(failures={"sweep": {"code": "x", "message": "m", "retryable": False}}))
    assert client.get(f"/api/v1/studies/{study['id']}").json()["state"] == "failed"
    answer = client.post("/api/v1/jobs/retry", json={"study_id": study["id"]})
    # retrying the sweep queues its layers, which the request then meets
    assert [outcome for _, outcome in outcomes(answer)] == ["changed", "unchanged", "unchanged", "unchanged"]
    run_to_end()
    assert client.get(f"/api/v1/studies/{study['id']}").json()["state"] == "succeeded"


def test_chunks_that_were_committed_stay_and_the_request_is_sent_again(
    app: FastAPI, client: TestClient, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 2)
    cancel, asked = bulk.cancel_job, []

    def breaks_off(session: Session, id_: str) -> Job:
        asked.append(id_)
        if len(asked) == 4:
            raise OperationalError("UPDATE", {}, Exception("the database went away"))
        return cancel(session, id_)

    monkeypatch.setattr(bulk, "cancel_job", breaks_off)
    key = {"Idempotency-Key": "in chunks"}
    assert client.post("/api/v1/jobs/cancel", json={"ids": jobs}, headers=key).status_code == 503
    assert [states(client)[id_] for id_ in jobs] == ["cancelled", "cancelled", "queued", "queued"]
    again = client.post("/api/v1/jobs/cancel", json={"ids": jobs}, headers=key)
    assert [outcome for _, outcome in outcomes(again)] == ["unchanged", "unchanged", "changed", "changed"]
    assert client.post("/api/v1/jobs/cancel", json={"ids": jobs}, headers=key).json() == again.json()


def test_a_chunk_that_the_database_ended_for_another_one_is_done_again(
    client: TestClient, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadlock(Exception):
        sqlstate = "40P01"

    cancel, asked = bulk.cancel_job, []

    def loses_once(session: Session, id_: str) -> Job:
        asked.append(id_)
        if len(asked) == 2:
            raise OperationalError("UPDATE", {}, Deadlock())
        return cancel(session, id_)

    monkeypatch.setattr(bulk, "cancel_job", loses_once)
    assert outcomes(client.post("/api/v1/jobs/cancel", json={"ids": jobs})) == [(id_, "changed") for id_ in jobs]
    assert asked == [*jobs[:2], *jobs]


def test_a_dry_run_of_several_chunks_tells_what_the_request_then_does(
    client: TestClient,
    study_config: dict[str, Any],
    run_to_end: Callable[..., None],
    make_worker: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 1)
    study_config["phases"] = [1]
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    run_to_end(make_worker(failures={"sweep": {"code": "x", "message": "m", "retryable": False}}))
    told = client.post("/api/v1/jobs/retry", json={"study_id": study["id"], "dry_run": True})
    done = client.post("/api/v1/jobs/retry", json={"study_id": study["id"]})
    assert told.json() | {"dry_run": False} == done.json()
    assert {outcome for _, outcome in outcomes(done)} == {"changed", "unchanged"}


@sqlite_only
def test_what_one_request_does_not_take_is_told(
    client: TestClient, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MOST", 3)
    answer = client.post("/api/v1/jobs/cancel", json={"kind": ["calibrate"]}).json()
    assert (answer["changed"], answer["left"]) == (3, 1)
    answer = client.post("/api/v1/jobs/cancel", json={"kind": ["calibrate"]}).json()
    assert (answer["changed"], answer["left"]) == (1, 0)


@sqlite_only
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"dry_run": True},
        {"ids": ["a"], "state": ["failed"]},
        {"ids": ["a"] * 1001},
        {"state": "failed"},
        {"state": ["busy"]},
        {"everything": True},
    ],
    ids=lambda body: str(body)[:30],
)
def test_a_request_that_names_nothing_or_too_much_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    for action in ("cancel", "retry"):
        assert client.post(f"/api/v1/jobs/{action}", json=body).status_code == 422


def test_a_crash_in_the_middle_changes_nothing(
    app: FastAPI, client: TestClient, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bulk.cancel_job
    done: list[str] = []

    def fail_at_the_third(session: Any, job_id: str) -> Job:
        done.append(job_id)
        if len(done) == 3:
            raise RuntimeError("power cut")
        return real(session, job_id)

    monkeypatch.setattr(bulk, "cancel_job", fail_at_the_third)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as broken:
        assert broken.post("/api/v1/jobs/cancel", json={"ids": jobs}).status_code == 500
    assert set(states(client).values()) == {"queued"}
