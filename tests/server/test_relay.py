"""The relay against a real Redis: delivery, FLUSHALL, lingering hashes, an outage."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from results_db import Database
from results_db.clock import db_now
from results_db.ids import new_id
from results_db.queue.control import pause_queue, resume_queue
from results_db.queue.lease import claim_attempt, release_attempt
from results_db.queue.relay import handed_over
from results_db.queue.submit import cancel_job, set_priority, submit_job
from results_db.states import JobKind, JobState
from results_db.tables import Attempt, Worker
from server.relay import QUEUE, RUN_ATTEMPT, Relay

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def relay(database: Database, redis_url: str) -> Iterator[Relay]:
    relay = Relay(database, redis_url)
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


def test_what_a_worker_took_is_sent_again_if_nobody_claims_it(
    database: Database, redis_url: str, connection: redis.Redis
) -> None:
    """A worker that is killed between the list and the claim leaves its message with RQ for more than a minute."""
    now_s = [100.0]
    relay = Relay(database, redis_url, unclaimed_s=15.0, clock=lambda: now_s[0])
    attempt = submit(database)
    relay.step()
    for taken in ("intermediate", "started"):
        if taken == "intermediate":
            connection.lmove(f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate")
        else:
            connection.delete(f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate")
            connection.zadd(f"rq:wip:{QUEUE}", {f"{attempt}:execution": 4e9})
        assert relay.step() == 0
        now_s[0] += 14.9
        assert relay.step() == 0
        assert queued(connection) == []
        now_s[0] += 0.1
        assert relay.step() == 1
        assert queued(connection) == [attempt]
    relay.close()


def test_what_is_in_the_list_already_is_not_sent_again(
    database: Database, relay: Relay, connection: redis.Redis
) -> None:
    """The relay died between telling Redis and telling the database."""
    attempt = submit(database)
    relay.queue.enqueue_call(RUN_ATTEMPT, args=(attempt,), job_id=attempt, unique=True)
    assert relay.step() == 0
    assert queued(connection) == [attempt]
    with database.read() as session:
        assert handed_over(session) == [attempt]


def test_an_urgent_job_goes_before_what_was_handed_over_earlier(
    database: Database, relay: Relay, connection: redis.Redis
) -> None:
    old = [submit(database) for _ in range(3)]
    relay.step()
    urgent = submit(database, priority=5)
    relay.step()
    assert queued(connection) == [urgent, *old]
    with database.write() as session:
        set_priority(session, session.get_one(Attempt, old[2]).job_id, 9)
    relay.step()
    assert queued(connection) == [old[2], urgent, *old[:2]]
    connection.flushall()
    relay.step()
    assert queued(connection) == [old[2], urgent, *old[:2]]


def test_redis_is_told_of_the_most_urgent_alone(database: Database, redis_url: str, connection: redis.Redis) -> None:
    relay = Relay(database, redis_url, window=2)
    attempts = [submit(database, priority=priority) for priority in (1, 2, 3)]
    relay.step()
    assert queued(connection) == [attempts[2], attempts[1]]
    connection.lpop(f"rq:queue:{QUEUE}")
    with database.write() as session:
        cancel_job(session, session.get_one(Attempt, attempts[2]).job_id)
    relay.step()
    assert queued(connection) == [attempts[1], attempts[0]]
    with database.read() as session:
        assert set(handed_over(session)) == set(attempts[:2])
    relay.close()


def test_a_paused_queue_hands_out_nothing(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempts = [submit(database) for _ in range(2)]
    relay.step()
    with database.write() as session:
        pause_queue(session, "the card is needed")
    relay.step()
    assert queued(connection) == []
    with database.read() as session:
        assert handed_over(session) == []
    with database.write() as session:
        resume_queue(session)
    assert relay.step() == 2
    assert queued(connection) == attempts


def test_an_attempt_that_waits_is_not_handed_out(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    with database.write() as session:
        session.get_one(Attempt, attempt).available_at = db_now(60.0)
    assert relay.step() == 0
    assert queued(connection) == []
    with database.write() as session:
        session.get_one(Attempt, attempt).available_at = db_now(-1.0)
    assert relay.step() == 1


def test_what_workers_take_while_the_list_is_put_in_order_stays_taken(
    database: Database, relay: Relay, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (submit(database) for _ in range(3))
    relay.step()
    look = relay._look

    def look_and_let_a_worker_take() -> Any:
        seen = look()
        assert connection.lpop(f"rq:queue:{QUEUE}") == first.encode()
        return seen

    monkeypatch.setattr(relay, "_look", look_and_let_a_worker_take)
    urgent = submit(database, priority=1)
    relay.step()
    assert queued(connection) == [urgent, second, third]


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
    with database.read() as session:
        newest = session.query(Attempt).filter_by(state="queued").one().id
    assert newest != attempt
    assert queued(connection) == [newest], "the old message, whose attempt can no longer be claimed, is gone"


def test_a_cancelled_attempt_is_not_sent_again(database: Database, relay: Relay, connection: redis.Redis) -> None:
    attempt = submit(database)
    relay.step()
    with database.write() as session:
        cancel_job(session, session.get_one(Attempt, attempt).job_id)
    connection.flushall()
    relay.step()
    assert queued(connection) == []


@sqlite_only
def test_an_outage_is_told_once_and_ends(
    database: Database, tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(database, f"unix://{tmp_path}/none.sock")
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


@sqlite_only
def test_a_redis_that_says_nothing_is_asked_once_a_step(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        relay = Relay(database, f"redis://127.0.0.1:{silent.getsockname()[1]}")
        assert relay.step() == 0
        assert relay.last_contact_at is None
        assert "imeout" in (relay.ping() or "")
        relay.close()
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
        # one for the step, one for the ping: each costs the whole timeout, and the loop must go on
        assert asked == 2
