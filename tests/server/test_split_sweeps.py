"""A sweep is split into its layers: who waits for whom, what a failure costs, what people see of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from results_db import Database
from results_db.queries.parts import layers_summary, parts_of
from results_db.queue.lease import claim_attempt, heartbeat, lose_attempt
from results_db.queue.relay import due_attempts
from results_db.tables import Attempt, Calibration, Job, Sweep

CONFIGS = [{"b_q": b, "rank": r, "codebook": "e8"} for b in (2, 3) for r in (0, 4)]
#: layers of the tiny model, projections of a layer, configs
N_LAYERS, N_PROJECTIONS = 3, 7
N_CELLS = N_LAYERS * N_PROJECTIONS * len(CONFIGS)
BROKEN = {"code": "non-finite-values", "message": "matrix 1.q holds NaN", "retryable": False}

Job_ = dict[str, Any]


@pytest.fixture
def ask(client: TestClient, model: dict[str, Any], run_to_end: Callable[..., None]) -> dict[str, Any]:
    """The parameters of a sweep of a calibrated model."""
    assert client.post("/api/v1/calibrations", json={"model_id": model["id"]}).status_code == 202
    run_to_end()
    (calibration,) = client.get("/api/v1/calibrations").json()["items"]
    return {"model_id": model["id"], "calibration_id": calibration["id"], "configs": CONFIGS}


def submit(client: TestClient, ask: dict[str, Any], **change: Any) -> Job_:
    answer = client.post("/api/v1/sweeps", json=ask | change)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def job(client: TestClient, id_: str) -> Job_:
    return dict(client.get(f"/api/v1/jobs/{id_}").json())


def parts(client: TestClient, whole: Job_) -> list[Job_]:
    return [job(client, id_) for id_ in job(client, whole["id"])["parts"]]


def states(client: TestClient, whole: Job_) -> list[str]:
    """Of the layers, in their order."""
    return [part["state"] for part in parts(client, whole)]


def sweeps(client: TestClient) -> list[dict[str, Any]]:
    return [client.get(f"/api/v1/sweeps/{row['id']}").json() for row in client.get("/api/v1/sweeps").json()["items"]]


def fail_layer(app: FastAPI, make_worker: Callable[..., Any], layer: int) -> None:
    """Run the queued parts; the one of this layer fails."""
    worker = make_worker(failures={f"sweep:layer-{layer}": BROKEN})
    while worker.run_all() or app.state.loop.turn():
        pass


def test_a_job_for_each_layer_and_one_sweep(
    app: FastAPI, client: TestClient, ask: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    whole = submit(client, ask)
    layers = parts(client, whole)
    assert whole["state"] == "waiting"
    assert whole["depends_on"] == [part["id"] for part in layers]
    assert [part["step"] for part in layers] == ["sweep:layer-0", "sweep:layer-1", "sweep:layer-2"]
    assert [part["params"]["matrices"]["layers"] for part in layers] == [[0], [1], [2]]
    with app.state.database.read() as session:
        first_come = [session.get_one(Attempt, id_).job_id for id_ in due_attempts(session)]
    assert first_come == [part["id"] for part in layers]
    run_to_end()
    assert job(client, whole["id"])["result"]["n_cells"] == N_CELLS
    (sweep,) = sweeps(client)
    assert sweep["job_id"] == whole["id"]
    assert sweep["n_cells"] == sweep["n_recorded"] == N_CELLS
    assert sweep["parts"] == {"succeeded": N_LAYERS}
    rows = client.get("/api/v1/measurements?limit=1000").json()["items"]
    assert {row["sweep_id"] for row in rows} == {sweep["id"]}
    assert len(rows) == N_CELLS


@pytest.mark.parametrize(
    "change", [{"split": "none"}, {"matrices": {"layers": [1]}}], ids=["because it asks for that", "for one layer"]
)
@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_one_job(client: TestClient, ask: dict[str, Any], run_to_end: Callable[..., None], change: Any) -> None:
    whole = submit(client, ask, **change)
    assert (whole["state"], whole["depends_on"]) == ("queued", [])
    run_to_end()
    assert sweeps(client)[0]["parts"] == {}


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_without_stored_hessians_a_sweep_is_one_job(
    app: FastAPI, client: TestClient, ask: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    with app.state.database.write() as session:
        session.execute(update(Calibration).values(keeps="tokens"))
    refused = client.post("/api/v1/sweeps", json=ask | {"split": "layer"})
    assert refused.status_code == 422
    assert "keeps no Hessians" in refused.json()["detail"]
    assert refused.json()["errors"][0]["field"] == "split"
    assert submit(client, ask)["state"] == "queued"


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_nobody_names_a_whole_by_hand(client: TestClient, ask: dict[str, Any]) -> None:
    whole = submit(client, ask)
    refused = client.post("/api/v1/sweeps", json=ask | {"part_of": whole["id"]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "part_of")


def test_a_failed_layer_fails_the_whole_by_name_and_a_retry_runs_it_alone(
    app: FastAPI,
    client: TestClient,
    ask: dict[str, Any],
    make_worker: Callable[..., Any],
    run_to_end: Callable[..., None],
) -> None:
    whole = submit(client, ask)
    fail_layer(app, make_worker, 1)
    assert states(client, whole) == ["succeeded", "failed", "succeeded"]
    end = job(client, whole["id"])
    assert end["state"] == "failed"
    assert end["attempts"] == []
    assert end["error"]["code"] == BROKEN["code"]
    assert end["error"]["message"].startswith(f"layer 1 ({parts(client, whole)[1]['id']}) is failed: matrix 1.q")
    assert sweeps(client)[0]["n_recorded"] == N_CELLS * 2 // 3
    assert client.post(f"/api/v1/jobs/{whole['id']}/retry").json()["state"] == "waiting"
    assert states(client, whole) == ["succeeded", "queued", "succeeded"]
    run_to_end()
    assert job(client, whole["id"])["state"] == "succeeded"
    assert sweeps(client)[0]["n_recorded"] == N_CELLS


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_retried_layer_takes_its_whole_with_it(
    app: FastAPI,
    client: TestClient,
    ask: dict[str, Any],
    make_worker: Callable[..., Any],
    run_to_end: Callable[..., None],
) -> None:
    whole = submit(client, ask)
    fail_layer(app, make_worker, 2)
    client.post(f"/api/v1/jobs/{parts(client, whole)[2]['id']}/retry")
    assert job(client, whole["id"])["state"] == "waiting"
    run_to_end()
    assert job(client, whole["id"])["state"] == "succeeded"


def test_cancel_pause_and_resume_reach_the_layers(
    app: FastAPI,
    client: TestClient,
    ask: dict[str, Any],
    make_worker: Callable[..., Any],
    run_to_end: Callable[..., None],
) -> None:
    whole = submit(client, ask)
    worker = make_worker()
    running = claim_first(app.state.database, worker.worker_id)
    client.post(f"/api/v1/jobs/{whole['id']}/pause")
    assert states(client, whole) == ["running", "paused", "paused"]
    with app.state.database.read() as session:
        layers = [part.state for part in parts_of(session, session.get_one(Job, whole["id"]))]
    assert layers_summary(layers) == "0 of 3 layers, 2 paused"
    with app.state.database.write() as session:
        assert heartbeat(session, running, lease_s=60, progress=None).pause_requested
    client.post(f"/api/v1/jobs/{whole['id']}/resume")
    assert states(client, whole) == ["running", "queued", "queued"]
    with app.state.database.write() as session:
        assert not heartbeat(session, running, lease_s=60, progress=None).pause_requested
    client.post(f"/api/v1/jobs/{whole['id']}/cancel")
    assert job(client, whole["id"])["state"] == "cancelled"
    assert states(client, whole) == ["running", "cancelled", "cancelled"]
    with app.state.database.write() as session:
        assert heartbeat(session, running, lease_s=60, progress=None).cancel_requested
        lose_attempt(session, session.get_one(Attempt, running.attempt_id), "gone")
    assert states(client, whole) == ["cancelled"] * 3


def test_the_whole_shows_what_its_layers_did(
    app: FastAPI, client: TestClient, ask: dict[str, Any], make_worker: Callable[..., Any]
) -> None:
    whole = submit(client, ask)
    worker = make_worker()
    with app.state.database.read() as session:
        first = due_attempts(session)[0]
    worker.run(first)
    claim = claim_first(app.state.database, worker.worker_id)
    with app.state.database.write() as session:
        progress = {"done": 7, "total": 28, "message": "1.q", "eta_s": 42.0}
        heartbeat(session, claim, lease_s=60, progress=progress)
        # the first layer took nothing at all in this test: what it says of the pace is left out
        session.execute(update(Job).where(Job.state == "succeeded", Job.kind == "sweep").values(finished_at=None))
    app.state.loop.turn()
    seen = job(client, whole["id"])
    # 49 cells are left at two seconds each, one worker is at work
    assert seen["progress"] == {"done": 35, "total": N_CELLS, "message": "1 of 3 layers", "eta_s": 98.0}
    assert seen["started_at"] == parts(client, whole)[0]["started_at"]
    with app.state.database.read() as session:
        n_events = len(events(session, whole["id"]))
    app.state.loop.turn()
    with app.state.database.read() as session:
        assert len(events(session, whole["id"])) == n_events


def test_a_study_splits_its_sweep_when_its_turn_has_come(
    app: FastAPI, client: TestClient, study_config: dict[str, Any], make_worker: Callable[..., Any]
) -> None:
    study_config["phases"] = [1]
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    worker = make_worker()
    app.state.loop.turn()
    worker.run_all()
    app.state.loop.turn()
    seen = client.get(f"/api/v1/studies/{study['id']}").json()
    steps = [row["step"] for row in seen["jobs"]]
    assert {"sweep", "sweep:layer-0", "sweep:layer-1", "sweep:layer-2"} <= set(steps)
    # one layer is lost once: the gate counts it
    claim = claim_first(app.state.database, worker.worker_id)
    with app.state.database.write() as session:
        lose_attempt(session, session.get_one(Attempt, claim.attempt_id), "gone")
    while worker.run_all() or app.state.loop.turn():
        pass
    seen = client.get(f"/api/v1/studies/{study['id']}").json()
    assert seen["state"] == "succeeded", seen["reason"]
    gate = next(row for row in seen["gates"] if row["name"] == "collection_complete")
    assert gate["verdict"] == "GO"
    assert "1 attempt" in gate["explanation"]
    with app.state.database.read() as session:
        (sweep,) = session.scalars(select(Sweep)).all()
        whole = session.get_one(Job, sweep.job_id)
        assert whole.step == "sweep"
        assert [part.position for part in parts_of(session, whole)] == [whole.position] * N_LAYERS


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_study_may_keep_its_sweep_in_one_job(
    app: FastAPI, client: TestClient, study_config: dict[str, Any], run_to_end: Callable[..., None]
) -> None:
    study_config |= {"phases": [1], "sweep": {"split": "none"}}
    study = client.post("/api/v1/studies", json={"config": study_config}).json()
    run_to_end()
    seen = client.get(f"/api/v1/studies/{study['id']}").json()
    assert [row["step"] for row in seen["jobs"] if row["kind"] == "sweep"] == ["sweep"]
    study_config |= {"sweep": {"split": "layer"}, "calibration": {"samples": 8, "length": 64, "keep": "tokens"}}
    refused = client.post("/api/v1/studies", json={"config": study_config})
    assert refused.status_code == 422
    assert "its sweep is one job" in refused.text


def claim_first(database: Database, worker_id: str) -> Any:
    """Claim the attempt that RQ would hand out next."""
    with database.write() as session:
        claim = claim_attempt(session, due_attempts(session)[0], worker_id=worker_id, lease_s=60)
    assert claim is not None
    return claim


def events(session: Any, job_id: str) -> list[Any]:
    from results_db.queue.events import events_after

    return list(events_after(session, 0, job_id=job_id))
