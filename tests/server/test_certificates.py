"""The certificate of a stored allocation holds, whoever asks for it and whenever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from compress_core.allocate.certificate_file import check_constraints
from compress_core.allocate.verify import verify
from results_db import Database
from results_db.tables import Measurement
from tests.server.allocating import BUDGET, Ids, allocate

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def client(standing_measured: TestClient) -> TestClient:
    return standing_measured


def certificate(client: TestClient, allocation: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/api/v1/allocations/{allocation['id']}/certificate.json")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(json.loads(answer.text))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"objective": "error", "scope": "model", "menu": [{"b_q": b, "rank": 0} for b in (2, 3, 4)]},
        {"constraints": {"groups": [{"projections": ["gate", "up"]}], "max_configs": 3}},
    ],
    ids=["everything measured", "plain error of the whole model", "constrained"],
)
@sqlite_only
def test_it_holds_and_says_what_the_row_says(client: TestClient, measured_model: Ids, params: dict[str, Any]) -> None:
    found = allocate(client, measured_model, budget=BUDGET, **params)
    document = certificate(client, found)
    for check in [*verify(document), check_constraints(document)]:
        assert check.passed, check
    assert document["about"]["allocation_id"] == found["id"]
    assert document["total_bytes"] == found["matrix_bytes"]
    assert document["objective"] == found["objective_value"]
    assert document["optimal"] is found["optimal"] is True
    chosen = [document["menu"][column] for column in document["choice"]]
    assert [config["b_q"] for config in chosen] == [item["b_q"] for item in found["items"]]
    document["choice"][0] = (document["choice"][0] + 1) % len(document["menu"])
    assert not all(check.passed for check in verify(document))


def test_what_was_measured_since_does_not_change_it(fresh_client: TestClient, measured_model: Ids) -> None:
    found = allocate(fresh_client, measured_model, budget=BUDGET)
    before = certificate(fresh_client, found)
    database: Database = fresh_client.app.state.database  # type: ignore[attr-defined]
    with database.write() as session:
        session.execute(update(Measurement).values(calibration_weighted_error=Measurement.raw_mse + 0.5))
    answer = fresh_client.get(f"/api/v1/allocations/{found['id']}/certificate.json")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:bitbudget:problem:certificate-stale")
    assert "allocate again" in answer.json()["detail"]
    again = certificate(fresh_client, allocate(fresh_client, measured_model, budget=BUDGET))
    assert again["problem_hash"] != before["problem_hash"]


@sqlite_only
def test_only_what_is_proven_has_one(client: TestClient, measured_model: Ids) -> None:
    greedy = allocate(client, measured_model, budget=BUDGET, kind="greedy")
    answer = client.get(f"/api/v1/allocations/{greedy['id']}/certificate.json")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:bitbudget:problem:no-certificate")
    assert client.get("/api/v1/allocations/none/certificate.json").status_code == 404
