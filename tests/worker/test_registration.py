"""The worker's row, and what dead workers of this machine leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from results_db import Database
from results_db.queue.lease import claim_attempt, lose_attempt
from results_db.queue.submit import cancel_job, submit_job
from results_db.queue.workers import drain_worker
from results_db.settings import Settings
from results_db.states import AttemptState, JobKind
from results_db.tables import Attempt, Worker
from worker import registration
from worker.device import CPU
from worker.registration import Orders, ProcessId, bury_the_dead, register, touch


def claimed(database: Database, worker_id: str) -> str:
    """A running attempt of a worker."""
    with database.write() as session:
        job = submit_job(session, JobKind.SWEEP, {})
        attempt_id = session.scalars(select(Attempt.id).where(Attempt.job_id == job.id)).one()
        assert claim_attempt(session, attempt_id, worker_id=worker_id, lease_s=45)
    return attempt_id


def state(database: Database, attempt_id: str) -> str:
    with database.read() as session:
        return session.get_one(Attempt, attempt_id).state


@pytest.mark.parametrize(
    ("change", "buried"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"started": 1}, True),
        ({"boot_id": "another machine", "pid": 2**22 + 1}, False),
        ({"pid_namespace": "pid:[1]", "pid": 2**22 + 1}, False),
    ],
    ids=["alive", "gone", "its number was given away", "another machine", "another container"],
)
def test_only_what_is_surely_dead_is_buried(
    database: Database, change: dict[str, Any], buried: bool, tmp_path: Path
) -> None:
    settings = Settings(var_dir=tmp_path)
    worker_id = register(database, "one", CPU)
    attempt_id = claimed(database, worker_id)
    with database.write() as session:
        row = session.get_one(Worker, worker_id)
        row.versions = row.versions | {"process": row.versions["process"] | change}
    assert bury_the_dead(database, settings) == int(buried)
    assert state(database, attempt_id) == (AttemptState.LOST if buried else AttemptState.RUNNING)
    assert bury_the_dead(database, settings) == 0
    with database.read() as session:
        assert session.get_one(Worker, worker_id).state == ("down" if buried else "up")


def test_the_dead_are_buried_one_attempt_a_transaction(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing holds two attempts' rows at once; what comes between leaves the rest to the next that starts."""
    settings = Settings(var_dir=tmp_path)
    worker_id = register(database, "one", CPU)
    attempts = [claimed(database, worker_id) for _ in range(3)]
    with database.write() as session:
        row = session.get_one(Worker, worker_id)
        row.versions = row.versions | {"process": row.versions["process"] | {"pid": 2**22 + 1}}
    sessions: list[object] = []

    def lose(session: Any, *arguments: Any, **options: Any) -> bool:
        if len(sessions) == 2:
            sessions.clear()
            raise ConnectionError("the database went away")
        sessions.append(session)
        return lose_attempt(session, *arguments, **options)

    monkeypatch.setattr(registration, "lose_attempt", lose)
    with pytest.raises(ConnectionError):
        bury_the_dead(database, settings)
    found = sorted(state(database, attempt_id) for attempt_id in attempts)
    assert found == [AttemptState.LOST, AttemptState.LOST, AttemptState.RUNNING]
    assert bury_the_dead(database, settings) == 1
    assert [state(database, attempt_id) for attempt_id in attempts] == 3 * [AttemptState.LOST]
    assert bury_the_dead(database, settings) == 0


def test_a_worker_that_left_in_order(database: Database) -> None:
    worker_id = register(database, "one", CPU)
    assert touch(database, worker_id, state="down") == Orders(drain=False, cancelled=None)
    with database.read() as session:
        row = session.get_one(Worker, worker_id)
    assert (row.state, row.pid, row.device_kind) == ("down", os.getpid(), "cpu")


def test_a_worker_hears_what_people_want_of_it(database: Database) -> None:
    worker_id = register(database, "one", CPU)
    attempt_id = claimed(database, worker_id)
    assert touch(database, worker_id) == Orders(drain=False, cancelled=None)
    with database.write() as session:
        drain_worker(session, worker_id)
        cancel_job(session, session.get_one(Attempt, attempt_id).job_id)
    assert touch(database, worker_id) == Orders(drain=True, cancelled=attempt_id)


def test_process_ids() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me == ProcessId.of(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    other = ProcessId.of(child.pid)
    assert other is None or other != me
    child.wait()
    assert ProcessId.of(child.pid) is None
