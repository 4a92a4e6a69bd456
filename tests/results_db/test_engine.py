"""Database: sessions that write, sessions that cannot."""

from __future__ import annotations

import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis
from sqlalchemy import select, text
from sqlalchemy.exc import InternalError

from results_db import Database
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job, JobEvent


def test_a_written_job_and_its_event_are_read_back(database: Database) -> None:
    with database.write() as session:
        job = submit_job(session, JobKind.FETCH, {"model_id": "mod_1"})
    with database.read() as session:
        assert session.scalars(select(Job.id)).all() == [job.id]
        assert session.scalars(select(JobEvent.state)).all() == ["queued"]


def test_an_exception_in_a_write_rolls_back(database: Database) -> None:
    def submit_and_fail() -> None:
        with database.write() as session:
            submit_job(session, JobKind.FETCH, {"model_id": "mod_1"})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        submit_and_fail()
    with database.read() as session:
        assert session.scalars(select(Job.id)).all() == []


def test_nothing_written_in_a_read_is_kept(database: Database) -> None:
    refused = pytest.raises(InternalError, match="read-only") if not database.is_sqlite else nullcontext()
    with refused, database.read() as session:
        session.add(Job(id="job_1", kind="fetch", state="queued", params={}))
        session.flush()
    with database.read() as session:
        assert session.scalars(select(Job.id)).all() == []


def test_redis_is_empty_for_every_test(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    assert client.dbsize() == 0
    client.set("left", "over")
    client.close()


def test_redis_is_empty_again(redis_url: str) -> None:
    test_redis_is_empty_for_every_test(redis_url)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_connecting_again_keeps_the_locks_of_this_process(database: Database) -> None:
    """Closing a descriptor of a file drops all of a process's POSIX locks on it: then another process, when it leaves,
    takes itself for the last one and removes the log that this process writes to."""
    path = str(database.url.database)
    log = Path(f"{path}-wal")
    with database.write() as session:
        submit_job(session, JobKind.FETCH, {})
    first, second = database.engine.connect(), database.engine.connect()  # two at a time: the pool opens another
    with first, second:
        script = f"import sqlite3; c = sqlite3.connect({path!r}); c.execute('SELECT 1 FROM jobs').fetchone(); c.close()"
        subprocess.run([sys.executable, "-c", script], check=True)
        assert log.exists()


def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a)")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new.db": 0o600, "new.db-wal": 0o600, "new.db-shm": 0o600}, "the log and its index as well"
    database.dispose()


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_only_a_reader_that_computes_may_idle(database: Database) -> None:
    limit = text("SHOW idle_in_transaction_session_timeout")
    found = []
    for options in ({}, {"computes": True}, {}):
        with database.read(**options) as session:
            found.append(session.scalar(limit))
    assert found == ["1min", "0", "1min"]
