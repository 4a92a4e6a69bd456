"""Waits between attempts: their limits, and what of a job's history makes it wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from results_db.clock import db_now
from results_db.queue.backoff import Backoff
from results_db.queue.events import events_after
from results_db.queue.lease import fail_attempt, lose_attempt, release_attempt
from results_db.queue.relay import due_attempts
from results_db.settings import Settings
from results_db.states import AttemptState, JobState

RETRYABLE = {"code": "database-unavailable", "message": "gone", "retryable": True}


class Longest(Backoff):
    """Without luck: always the longest wait."""

    def draw_s(self, failures: int) -> float:
        return self.longest_s(failures)


def test_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(base_s=5.0, cap_s=300.0)
    assert [backoff.longest_s(n) for n in range(9)] == [0, 5, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.longest_s(10_000) == 300


def test_jitter_is_full() -> None:
    backoff = Backoff(base_s=8.0, cap_s=300.0)
    drawn = [backoff.draw_s(1) for _ in range(400)]
    assert all(0 <= wait <= 8 for wait in drawn)
    assert min(drawn) < 1
    assert max(drawn) > 7
    assert backoff.draw_s(0) == 0


def test_settings_choose_the_waits() -> None:
    assert Settings().backoff == Backoff(5.0, 300.0)
    assert Settings(retry_base_s=0, retry_cap_s=7).backoff == Backoff(0.0, 7.0)


def _wait_s(queue: Any, job_id: str) -> float | None:
    """Seconds until the newest attempt is due; None = at once."""
    with queue.database.read() as session:
        now = session.scalar(select(db_now()))
    end = queue.attempts(job_id)[-1].available_at
    return None if end is None else (end - now) / timedelta(seconds=1)


def test_a_retryable_error_waits_longer_each_time(queue: Any) -> None:
    job_id = queue.submit(max_attempts=4)
    for longest_s in (50, 100, 200):
        queue.do(fail_attempt, queue.run(job_id), RETRYABLE, backoff=Longest(base_s=50))
        assert queue.job(job_id).state == JobState.QUEUED
        assert longest_s - 10 < (_wait_s(queue, job_id) or 0) <= longest_s
        assert queue.claim(job_id) is None, "a claim respects the wait"
        assert queue.states(job_id)[-1] == AttemptState.QUEUED, "and costs nothing"
        assert queue.do(due_attempts) == []
        queue.due(job_id)
        assert queue.do(due_attempts) == [queue.attempts(job_id)[-1].id]
    queue.do(fail_attempt, queue.run(job_id), RETRYABLE)
    assert queue.job(job_id).state == JobState.FAILED


def test_the_first_loss_is_made_good_at_once(queue: Any) -> None:
    job_id = queue.submit(max_attempts=4)
    waits = []
    for _ in range(3):
        claim = queue.run(job_id)
        assert claim.job_id == job_id
        queue.do(lose_attempt, queue.attempts(job_id)[-1], "gone", backoff=Longest(base_s=50))
        waits.append(_wait_s(queue, job_id))
        queue.due(job_id)
    assert waits[0] is None
    assert waits[1:] == [pytest.approx(50, abs=10), pytest.approx(100, abs=10)]


def test_what_is_given_back_in_order_waits_for_nothing(queue: Any) -> None:
    job_id = queue.submit()
    queue.do(release_attempt, queue.run(job_id), to=JobState.QUEUED)
    assert _wait_s(queue, job_id) is None


def test_the_wait_is_told(queue: Any) -> None:
    job_id = queue.submit()
    queue.do(fail_attempt, queue.run(job_id), RETRYABLE, backoff=Longest(base_s=12.5))
    with queue.database.read() as session:
        told = events_after(session, 0, job_id=job_id)[-1]
    assert (told.state, told.payload) == ("queued", {"message": "tried again in 12.5 s", "wait_s": 12.5})
