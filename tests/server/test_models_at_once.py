"""Two people who register one model in the same moment get one row."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from results_db import Database
from results_db.tables import Job, Model
from server.models.schemas import ModelRequest
from server.models.service import Inspected, inspect_source, register_model

N = 6


def test_one_hub_model_has_one_row_and_one_fetch_job(client: TestClient, database: Database) -> None:
    start = threading.Barrier(N)

    def post(_: int) -> tuple[int, Any]:
        start.wait(30)
        answer = client.post("/api/v1/models", json={"source": "org/name", "revision": "0" * 40})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(N) as pool:
        answers = list(pool.map(post, range(N)))
    assert sorted(status for status, _ in answers) == [200] * (N - 1) + [202]
    assert len({id_ for _, id_ in answers}) == 1
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 1
        assert session.scalar(select(func.count()).select_from(Job)) == 1


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_second_transaction_waits_for_the_first_and_sees_its_row(database: Database) -> None:
    """The race made certain. SQLite lets no second writing transaction begin at all."""
    inspected = Inspected(ModelRequest(source="org/name", revision="0" * 40), None)
    waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

    def register() -> tuple[str, bool]:
        with database.write() as session:
            model, new, _ = register_model(session, inspected)
            return model.id, new

    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            first, is_new, _ = register_model(session, inspected)
            assert is_new
            second = pool.submit(register)
            deadline = time.monotonic() + 60
            while not session.scalar(waits):
                assert not second.done(), "it did not wait"
                assert time.monotonic() < deadline
        assert second.result(60) == (first.id, False)


def test_one_checkpoint_has_one_row(client: TestClient, database: Database, checkpoint: Path, settings: Any) -> None:
    inspected = inspect_source(ModelRequest(source=str(checkpoint)), settings)
    start = threading.Barrier(N)

    def register(_: int) -> str:
        start.wait(30)
        with database.write() as session:
            return register_model(session, inspected)[0].id

    with ThreadPoolExecutor(N) as pool:
        assert len(set(pool.map(register, range(N)))) == 1
