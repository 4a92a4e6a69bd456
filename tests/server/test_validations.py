"""Which calibration a validation decomposes under, when nobody says."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from results_db import Database
from results_db.tables import Allocation, Calibration, Job


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
