"""A database that was moved gives the same fits and the same allocation, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from results_db import Database
from results_db.copy import copy_database
from results_db.settings import Settings
from server.app import create_app

#: what every new row has of its own
_OWN = {"id", "created_at", "seconds", "fit_id", "allocation_id", "allocation_ids", "group_id", "trace_id"}


def same(value: Any) -> Any:
    """An answer without what no two answers share."""
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items() if key not in _OWN}
    return [same(item) for item in value] if isinstance(value, list) else value


def ask(client: TestClient, ids: dict[str, Any]) -> dict[str, Any]:
    """A fit, and the allocations that follow from it and from the measurements."""
    fit = client.post("/api/v1/fits", json=ids)
    assert fit.status_code == 201, fit.text
    body = ids | {"name": "moved", "budget": {"uniform": {"b_q": 3, "rank": 4}}}
    allocation = client.post("/api/v1/allocations", json=body)
    assert allocation.status_code == 201, allocation.text
    return {"fit": same(fit.json()), "allocation": same(allocation.json())}


def test_the_moved_database_answers_the_same(
    client: TestClient, database: Database, measured_model: dict[str, Any], other_database_url: str, tmp_path: Path
) -> None:
    ids = {name: measured_model[name] for name in ("model_id", "calibration_id")}
    target = Database(other_database_url)
    copy_database(database, target, hold=True)
    target.dispose()
    moved = Settings(database_url=other_database_url, redis_url="unix:///nowhere.sock", var_dir=tmp_path / "moved")
    app = create_app(moved, run_loop=False, page=False)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as there:
        # what is stored, then what is computed from it
        for path in ("models", "calibrations", "measurements?limit=200", "sensitivities?limit=200", "jobs"):
            assert there.get(f"/api/v1/{path}").json() == client.get(f"/api/v1/{path}").json(), path
        here = ask(client, ids)
        assert here["allocation"]["total_bytes"] > 0
        assert ask(there, ids) == here
