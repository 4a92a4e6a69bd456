"""Validations: which calibration they decompose under when nobody says, and what is made of their winner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from results_db import Database
from results_db.tables import Allocation, Calibration, Job
from tests.server.allocating import BUDGET, MENU, Ids, allocate, refused


def test_allocations_are_validated_as_they_were_made(
    client: TestClient, database: Database, measured_model: dict[str, Any]
) -> None:
    model_id, first = measured_model["model_id"], measured_model["calibration_id"]
    ask = {"model_id": model_id, "kind": "uniform", "uniform": {"b_q": 2}, "calibration_id": first}
    ids = [client.post("/api/v1/allocations", json=ask | {"name": name}).json()["id"] for name in "ab"]
    with database.write() as session:
        row = session.get_one(Calibration, first)
        columns = {column.name: getattr(row, column.name) for column in Calibration.__table__.columns}
        session.add(Calibration(**columns | {"id": "cal_zzz", "content_hash": "another"}))
        session.get_one(Allocation, ids[0]).calibration_id = first
        session.get_one(Allocation, ids[1]).calibration_id = None

    def submitted(**more: Any) -> str:
        answer = client.post(
            "/api/v1/validations", json={"model_id": model_id, "name": "x", "allocation_ids": ids} | more
        )
        assert answer.status_code == 202, answer.text
        with database.read() as session:
            return str(session.get_one(Job, answer.json()["id"]).params["calibration_id"])

    assert submitted() == first
    assert submitted(calibration_id="cal_zzz") == "cal_zzz"
    with database.write() as session:
        session.get_one(Allocation, ids[1]).calibration_id = "cal_zzz"
    refused = client.post("/api/v1/validations", json={"model_id": model_id, "name": "x", "allocation_ids": ids})
    assert refused.status_code == 422
    assert "several calibrations" in refused.text
    assert submitted(calibration_id="cal_zzz") == "cal_zzz"


def test_the_winner_of_a_validation_is_copied(
    client: TestClient, measured_model: Ids, run_to_end: Callable[..., None]
) -> None:
    rivals = {
        "optimal": allocate(client, measured_model, name="optimal", budget=BUDGET, menu=MENU),
        "uniform": allocate(client, measured_model, name="uniform", kind="best_uniform", budget=BUDGET, menu=MENU),
        "coarse": allocate(client, measured_model, name="coarse", kind="uniform", uniform={"b_q": 2}),
    }
    ask = {"model_id": measured_model["model_id"], "name": "choice"}
    ids = [row["id"] for row in rivals.values()]
    answer = client.post("/api/v1/validations", json=ask | {"allocation_ids": ids})
    assert answer.status_code == 202, answer.text
    run_to_end()
    listed = client.get("/api/v1/validations").json()["items"]
    assert len(listed) == 1
    validation = client.get(f"/api/v1/validations/{listed[0]['id']}").json()
    assert [item["name"] for item in validation["items"]] == ["original", "optimal", "uniform", "coarse"]
    base: dict[str, Any] = {"kind": "winner", "validation_id": validation["id"], "name": "chosen"}
    chosen = allocate(client, measured_model, **base)
    assert (chosen["name"], chosen["content_hash"]) == ("chosen", rivals["optimal"]["content_hash"])
    assert chosen["id"] not in ids
    assert len(chosen["items"]) == len(rivals["optimal"]["items"])
    assert chosen["overrides_yaml"] == rivals["optimal"]["overrides_yaml"]
    assert chosen["details"]["choice"]["winner"] == "optimal"
    among = allocate(client, measured_model, **base, among=["uniform", "coarse"])
    assert among["content_hash"] == rivals["uniform"]["content_hash"]
    wrong = refused(client, measured_model, "invalid-request", **base, among=["nobody"])
    assert "optimal, uniform, coarse" in wrong["detail"]
    refused(client, measured_model, "invalid-request", kind="winner")
    refused(client, measured_model, "not-found", 404, kind="winner", validation_id="val_0")
