"""Database: sessions that write, sessions that cannot."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import redis
from sqlalchemy import select
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
