"""A request that computes for longer than a session may idle in a transaction is no frozen process."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from server.kit.problem import Problem


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("path", "compute", "body"),
    [
        ("/api/v1/fits", "server.fits.endpoints.compute_fit", {}),
        ("/api/v1/allocations", "server.allocations.endpoints.compute_allocation", {"name": "x", "kind": "uniform"}),
    ],
)
def test_its_session_may_idle(
    standing: TestClient, path: str, compute: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def computes(session: Session, params: Any) -> None:
        limits.append(session.scalar(text("SHOW idle_in_transaction_session_timeout")))
        raise Problem(409, "wrong-state", "computed enough")

    monkeypatch.setattr(compute, computes)
    assert standing.post(path, json={"model_id": "m"} | body).json()["detail"] == "computed enough"
    assert limits == ["0"]
