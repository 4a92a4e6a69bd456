"""The relay against a real Redis: delivery, FLUSHALL, lingering hashes, an outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from results_db import Database
from results_db.ids import new_id
from results_db.queue.lease import claim_attempt, release_attempt
from results_db.queue.relay import attempts_to_enqueue
from results_db.queue.submit import cancel_job, submit_job
from results_db.states import JobKind, JobState
from results_db.tables import Attempt, Worker
from server.relay import QUEUE, RUN_ATTEMPT, Relay


@pytest.fixture
def relay(database: Database, redis_url: str) -> Iterator[Relay]:
    relay = Relay(database, redis_url, reconcile_every_s=0)
    yield relay
    relay.close()


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


def submit(database: Database, **options: Any) -> str:
    """A queued job's attempt."""
    with database.write() as session:
        job = submit_job(session, JobKind.CALIBRATE, {"model_id": "m"}, **options)
        return session.query(Attempt).filter_by(job_id=job.id).one().id


def queued(connection: redis.Redis) -> list[str]:
    return [member.decode() for member in connection.lrange(f"rq:queue:{QUEUE}", 0, -1)]


def test_an_attempt_is_delivered_once(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    assert relay.step() == 1
    assert relay.step() == 0
    assert queued(connection) == [attempt]
    message = RqJob.fetch(attempt, connection=connection, serializer=JSONSerializer)
    assert (message.func_name, list(message.args)) == (RUN_ATTEMPT, [attempt])


def test_urgent_attempts_go_first(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempts = {priority: submit(database, priority=priority) for priority in (0, 5, 1)}
    relay.step()
    assert queued(connection) == [attempts[5], attempts[1], attempts[0]]


def test_flushall_loses_nothing(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempts = [submit(database) for _ in range(3)]
    relay.step()
    connection.flushall()
    relay.step()
    assert queued(connection) == attempts


def test_a_lingering_hash_strands_nothing(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    relay.step()
    # a worker took it from the queue and died before it claimed: the hash stays and blocks RQ's ``unique``
    connection.delete(f"rq:queue:{QUEUE}")
    relay.step()
    assert queued(connection) == [attempt]


def test_what_rq_started_is_in_flight_until_its_heartbeat_ends(
    database: Database, relay: Relay, connection: redis.Redis
) -> None:
    attempt = submit(database)
    relay.step()
    connection.delete(f"rq:queue:{QUEUE}")
    connection.zadd(f"rq:wip:{QUEUE}", {f"{attempt}:execution": 4e9})
    relay.step()
    assert queued(connection) == []
    connection.zadd(f"rq:wip:{QUEUE}", {f"{attempt}:execution": 1.0})
    relay.step()
    assert queued(connection) == [attempt]


def test_a_duplicate_counts_as_delivered(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    relay.queue.enqueue_call(RUN_ATTEMPT, args=(attempt,), job_id=attempt, unique=True)
    assert relay.step() == 1
    assert queued(connection) == [attempt]
    with database.read() as session:
        assert attempts_to_enqueue(session) == []


def test_a_released_attempt_comes_back_as_a_new_one(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    relay.step()
    worker = new_id("wrk")
    with database.write() as session:
        session.add(
            Worker(
                id=worker,
                name=worker,
                hostname="h",
                pid=1,
                device="cpu",
                device_kind="cpu",
                state="up",
                heartbeat_at=session.get_one(Attempt, attempt).created_at,
            )
        )
    with database.write() as session:
        claim = claim_attempt(session, attempt, worker_id=worker, lease_s=60)
        assert claim is not None
    with database.write() as session:
        release_attempt(session, claim, to=JobState.QUEUED)
    relay.step()
    # the old message is still there and harmless: its attempt can no longer be claimed
    assert len(queued(connection)) == 2
    assert queued(connection)[0] == attempt


def test_a_cancelled_attempt_is_not_sent_again(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    relay.step()
    with database.write() as session:
        cancel_job(session, session.get_one(Attempt, attempt).job_id)
    connection.flushall()
    relay.step()
    assert queued(connection) == []


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_an_outage_is_told_once_and_ends(
    database: Database, tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(database, f"unix://{tmp_path}/none.sock", reconcile_every_s=0)
    attempt = submit(database)
    with caplog.at_level(logging.INFO, logger="server.relay"):
        for _ in range(3):
            assert relay.step() == 0
        assert relay.ping() is not None
        back = Relay(database, redis_url)
        relay.redis, relay.queue = back.redis, back.queue
        assert relay.step() == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert queued(relay.redis) == [attempt]
    relay.close()
