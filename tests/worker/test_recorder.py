"""A write whose transaction PostgreSQL ended, because its process stood still, is made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from results_db import Database
from results_db.queue.lease import Claim
from worker.context import Recorder

PATIENCE_S = 30.0


@pytest.fixture
def database(
    postgres_uri: Callable[[str], str], postgres_run: Callable[[str], Any], postgres_template: str
) -> Iterator[Database]:
    name = f"t{uuid4().hex}"
    postgres_run(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    found = Database(postgres_uri(name))
    yield found
    found.dispose()
    postgres_run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database, Claim("att_1", 1, "job_1", None, "sweep", {}, "token"))


def test_a_transaction_that_stood_still_is_made_again(database: Database, recorder: Recorder) -> None:
    processes: list[int] = []

    def record(session: Session, _: Claim) -> int:
        processes.append(session.scalars(text("SELECT pg_backend_pid()")).one())
        if len(processes) == 1:
            session.execute(text("SET idle_in_transaction_session_timeout = '20ms'"))
            _wait_until_gone(database, processes[0])
        return session.scalars(text("SELECT 7")).one()

    assert recorder.write(record) == 7
    assert len(set(processes)) == 2


def test_a_write_that_cannot_succeed_is_not_repeated(recorder: Recorder) -> None:
    calls: list[None] = []

    def record(session: Session, _: Claim) -> None:
        calls.append(None)
        session.execute(text("SELECT nothing FROM nowhere"))

    with pytest.raises(ProgrammingError):
        recorder.write(record)
    assert len(calls) == 1


def _wait_until_gone(database: Database, process: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    alive = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :process")
    while True:
        with database.read() as session:
            if session.scalars(alive, {"process": process}).one() == 0:
                return
        assert time.monotonic() < deadline, "the server never ended the transaction"
        time.sleep(0.02)
