"""Claim, heartbeat, fencing, loss: one owner at a time, by the database's clock."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.errors import LeaseLost
from results_db.queue.lease import (
    claim_attempt,
    fail_attempt,
    finish_attempt,
    heartbeat,
    hold_lease,
    lose_attempt,
    reap_expired,
    release_attempt,
)
from results_db.queue.submit import cancel_job, pause_job
from results_db.states import AttemptState, JobState
from results_db.tables import Attempt

Q, R, S = AttemptState.QUEUED, AttemptState.RUNNING, AttemptState.SUCCEEDED
RETRYABLE = {"code": "out-of-memory", "message": "no room", "retryable": True}
FINAL = {"code": "non-finite-values", "message": "NaN", "retryable": False}


def test_claim_once(queue: Any) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    assert queue.claim(job_id) is None
    assert (claim.job_id, claim.attempt_number, claim.kind, claim.params) == (job_id, 1, "sweep", {"model_id": "mod_1"})
    assert queue.job(job_id).state == JobState.RUNNING
    assert queue.states(job_id) == [R]
    assert queue.events(job_id) == [("state", "queued"), ("state", "running")]


def test_claim_race(queue: Any, database_url: str) -> None:
    """Ten threads with connections of their own want the same attempts: each gets one owner."""
    attempts = [queue.attempts(queue.submit())[0].id for _ in range(5)]

    def work(_: int) -> list[str]:
        database = Database(database_url)
        try:
            taken = []
            for attempt_id in attempts:
                with database.write() as session:
                    if claim_attempt(session, attempt_id, worker_id="wrk_1", lease_s=45):
                        taken.append(attempt_id)
            return taken
        finally:
            database.dispose()

    with ThreadPoolExecutor(10) as pool:
        taken = [attempt_id for ids in pool.map(work, range(10)) for attempt_id in ids]
    assert sorted(taken) == sorted(attempts)


def test_the_lease_ends_by_the_clock_of_the_database(queue: Any) -> None:
    claim = queue.run(queue.submit())
    with queue.database.read() as session:
        now = session.scalar(select(db_now()))
        attempt = session.get_one(Attempt, claim.attempt_id)
    assert timedelta(seconds=40) < attempt.lease_expires_at - now <= timedelta(seconds=45)
    assert abs(utc_now() - now) < timedelta(seconds=30)


def test_what_a_killed_process_needed_is_known_from_its_last_heartbeat(queue: Any) -> None:
    claim = queue.run(queue.submit())
    queue.do(heartbeat, claim, lease_s=45, progress=None, peaks={"peak_rss_bytes": 7, "peak_gpu_bytes": 8})
    queue.do(heartbeat, claim, lease_s=45, progress=None, peaks={"peak_rss_bytes": 9, "peak_gpu_bytes": None})
    queue.expire(claim)
    queue.do(reap_expired)
    lost = queue.attempts(claim.job_id)[0]
    assert (lost.peak_rss_bytes, lost.peak_gpu_bytes) == (9, 8)


def test_heartbeat_renews_and_tells(queue: Any) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.expire(claim)
    progress = {"done": 3, "total": 9, "message": "3 of 9", "eta_s": 1.5}
    beat = queue.do(heartbeat, claim, lease_s=45, progress=progress)
    assert (beat.cancel_requested, beat.pause_requested) == (False, False)
    assert queue.do(reap_expired) == []
    assert queue.job(job_id).progress == progress
    assert queue.events(job_id)[-1] == ("progress", "running")
    queue.do(heartbeat, claim, lease_s=45, progress=progress)
    assert len(queue.events(job_id)) == 3, "the same progress twice is one event"
    queue.do(cancel_job, job_id)
    assert queue.do(heartbeat, claim, lease_s=45, progress=None).cancel_requested


def test_an_expired_lease_makes_a_new_attempt(queue: Any) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    assert queue.do(reap_expired) == []
    queue.expire(claim)
    assert queue.do(reap_expired) == [claim.attempt_id]
    assert queue.do(reap_expired) == []
    assert queue.states(job_id) == [AttemptState.LOST, Q]
    assert queue.job(job_id).state == JobState.QUEUED
    assert [kind for kind, _ in queue.events(job_id)].count("worker_lost") == 1


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_worker_frozen_in_a_transaction_holds_up_nobody(queue: Any, database_url: str) -> None:
    """Its row is skipped, then PostgreSQL ends its transaction; the frozen write never commits."""
    claim = queue.run(queue.submit())
    queue.expire(claim)
    frozen = Database(database_url, idle_limit_s=0.5)
    with frozen.engine.connect() as connection, Session(connection) as session:
        hold_lease(session, claim)
        assert queue.do(reap_expired) == []
        deadline = time.monotonic() + 20
        while not queue.do(reap_expired):
            assert time.monotonic() < deadline, "the frozen transaction still holds its lock"
        with pytest.raises(DBAPIError):
            session.commit()
    frozen.dispose()
    with pytest.raises(LeaseLost):
        queue.do(hold_lease, claim)


@pytest.mark.parametrize("write", ["hold", "beat", "finish", "fail", "release"])
def test_a_stale_token_writes_nothing(queue: Any, write: str) -> None:
    job_id = queue.submit()
    stale = queue.run(job_id)
    queue.expire(stale)
    queue.do(reap_expired)
    owner = queue.run(job_id)
    events = queue.events(job_id)
    actions: dict[str, Any] = {
        "hold": lambda session: hold_lease(session, stale),
        "beat": lambda session: heartbeat(session, stale, lease_s=45, progress={"done": 1}),
        "finish": lambda session: finish_attempt(session, stale, {"stale": True}),
        "fail": lambda session: fail_attempt(session, stale, FINAL),
        "release": lambda session: release_attempt(session, stale, to=JobState.CANCELLED),
    }
    with pytest.raises(LeaseLost, match=stale.attempt_id):
        queue.do(actions[write])
    assert queue.events(job_id) == events
    assert queue.states(job_id) == [AttemptState.LOST, R]
    queue.do(finish_attempt, owner, {"owner": True})
    assert queue.job(job_id).result == {"owner": True}


def test_finish(queue: Any) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.do(heartbeat, claim, lease_s=45, progress={"done": 1, "total": 2, "message": "", "eta_s": 3.0})
    queue.do(finish_attempt, claim, {"n": 1}, peak_rss_bytes=7)
    job = queue.job(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"n": 1})
    assert job.progress == {"done": 2, "total": 2, "message": "", "eta_s": 0.0}
    assert queue.attempts(job_id)[0].peak_rss_bytes == 7
    with pytest.raises(LeaseLost):
        queue.do(finish_attempt, claim, {"n": 2})
    assert queue.job(job_id).result == {"n": 1}


def test_an_error_that_a_retry_cannot_help(queue: Any) -> None:
    job_id = queue.submit()
    queue.do(fail_attempt, queue.run(job_id), FINAL)
    assert (queue.job(job_id).state, queue.job(job_id).error) == (JobState.FAILED, FINAL)
    assert queue.states(job_id) == [AttemptState.FAILED]


def test_a_retryable_error_is_tried_again_until_it_was_tried_often_enough(queue: Any) -> None:
    job_id = queue.submit(max_attempts=2)
    queue.do(fail_attempt, queue.run(job_id), RETRYABLE)
    assert queue.job(job_id).state == JobState.QUEUED
    queue.due(job_id)
    queue.do(fail_attempt, queue.run(job_id), RETRYABLE)
    assert queue.job(job_id).state == JobState.FAILED
    assert queue.states(job_id) == [AttemptState.FAILED, AttemptState.FAILED]


@pytest.mark.parametrize(
    ("ask", "end", "closed"),
    [(cancel_job, JobState.CANCELLED, AttemptState.FAILED), (pause_job, JobState.PAUSED, AttemptState.FAILED)],
)
def test_a_wish_to_stop_outlives_a_retryable_error(queue: Any, ask: Any, end: JobState, closed: AttemptState) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.do(ask, job_id)
    queue.do(fail_attempt, claim, RETRYABLE)
    assert queue.job(job_id).state == end
    assert queue.states(job_id) == [closed]


def test_dead_after_too_many_losses(queue: Any) -> None:
    job_id = queue.submit(max_attempts=3)
    for number in range(3):
        queue.due(job_id)
        claim = queue.run(job_id)
        attempt = queue.attempts(job_id)[-1]
        remains = {"signal": 9, "exit_code": None, "peak_rss_bytes": 5 if number else None}
        words = "in codebook.py" if number == 1 else None
        assert queue.do(lose_attempt, attempt, f"kill {number}", traceback=words, remains=remains)
        assert not queue.do(lose_attempt, attempt, "twice"), claim
    job = queue.job(job_id)
    assert job.state == JobState.DEAD
    assert queue.states(job_id) == [AttemptState.LOST] * 3
    assert job.error["code"] == "worker-lost"
    assert "kill 2" in job.error["message"]
    assert (job.error["signal"], job.error["peak_rss_bytes"]) == (9, 5)
    assert job.error["traceback"] == "in codebook.py", "the last attempt that left word"
    assert [a.error["message"] for a in queue.attempts(job_id)] == ["kill 0", "kill 1", "kill 2"]
    assert [a.signal for a in queue.attempts(job_id)] == [9, 9, 9]


def test_released_attempts_do_not_count(queue: Any) -> None:
    job_id = queue.submit(max_attempts=2)
    for _ in range(5):
        queue.do(release_attempt, queue.run(job_id), to=JobState.QUEUED)
    claim = queue.run(job_id)
    queue.expire(claim)
    queue.do(reap_expired)
    assert queue.job(job_id).state == JobState.QUEUED
    queue.do(finish_attempt, queue.run(job_id), {})
    assert queue.states(job_id) == [AttemptState.RELEASED] * 5 + [AttemptState.LOST, S]
    assert [a.number for a in queue.attempts(job_id)] == list(range(1, 8))


@pytest.mark.parametrize(("ask", "end"), [(cancel_job, JobState.CANCELLED), (pause_job, JobState.PAUSED)])
def test_a_lost_job_that_should_stop_stops(queue: Any, ask: Any, end: JobState) -> None:
    job_id = queue.submit()
    claim = queue.run(job_id)
    queue.do(ask, job_id)
    queue.expire(claim)
    queue.do(reap_expired)
    job = queue.job(job_id)
    assert (job.state, job.cancel_requested, job.pause_requested) == (end, False, False)
    assert queue.states(job_id) == [AttemptState.LOST]


def test_a_pause_does_not_save_a_poison_job(queue: Any) -> None:
    """Found by the random schedules: paused at its last loss and resumed, a job had an attempt too many."""
    job_id = queue.submit(max_attempts=1)
    claim = queue.run(job_id)
    queue.do(pause_job, job_id)
    queue.expire(claim)
    queue.do(reap_expired)
    assert queue.job(job_id).state == JobState.DEAD


def test_the_reaper_may_take_one_at_a_time(queue: Any) -> None:
    claims = [queue.run(queue.submit()) for _ in range(3)]
    for claim in claims:
        queue.expire(claim)
    found = [queue.do(reap_expired, most=1) for _ in range(4)]
    assert [len(ids) for ids in found] == [1, 1, 1, 0]
    assert {id_ for ids in found for id_ in ids} == {claim.attempt_id for claim in claims}
