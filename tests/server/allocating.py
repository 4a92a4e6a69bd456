"""Allocations of the measured model over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

Ids = dict[str, str]
BUDGET = {"uniform": {"b_q": 3, "rank": 4}}
MENU = [{"b_q": b, "rank": r} for b in (2, 3, 4) for r in (0, 4, 12)]


def allocate(client: TestClient, ids: Ids, **params: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/allocations", json={"model_id": ids["model_id"], "name": "test"} | params)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def refused(client: TestClient, ids: Ids, slug: str, status: int = 422, **params: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/allocations", json={"model_id": ids["model_id"], "name": "test"} | params)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:bitbudget:problem:{slug}"), answer.text
    return dict(answer.json())
