"""Wall clocks that jump: rows are shifted, as if the clock had been, and nothing is lost, doubled or held for ever."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from results_db.clock import db_now
from results_db.errors import LeaseLost
from results_db.queue.jumps import has_impossible_ends, shorten_impossible_ends
from results_db.queue.lease import finish_attempt, heartbeat, reap_expired
from results_db.states import AttemptState, JobState
from results_db.tables import Attempt

LIMITS = {"lease_s": 45.0, "longest_wait_s": 300.0}
HOUR_S = 3600.0


def shift(queue: Any, **ends_in_s: float) -> None:
    """Let the ends of all attempts lie so many seconds from now, as after a jump of the clock."""
    values = {column: db_now(seconds) for column, seconds in ends_in_s.items()}
    queue.do(lambda session: session.execute(update(Attempt).values(**values)))


def left_s(queue: Any, job_id: str, column: str) -> float:
    with queue.database.read() as session:
        now = session.scalar(select(db_now()))
    return (getattr(queue.attempts(job_id)[-1], column) - now) / timedelta(seconds=1)


def test_forward_costs_an_attempt_and_doubles_nothing(queue: Any) -> None:
    job_id = queue.submit()
    before = queue.run(job_id)
    shift(queue, lease_expires_at=45 - HOUR_S)
    assert queue.do(reap_expired) == [before.attempt_id]
    after = queue.run(job_id)
    with pytest.raises(LeaseLost):
        queue.do(finish_attempt, before, {"by": "the old one"})
    queue.do(finish_attempt, after, {"by": "the new one"})
    assert queue.job(job_id).result == {"by": "the new one"}
    assert queue.states(job_id) == [AttemptState.LOST, AttemptState.SUCCEEDED]


def test_backward_does_not_keep_a_dead_workers_lease(queue: Any) -> None:
    job_id = queue.submit()
    queue.run(job_id)
    assert not queue.do(has_impossible_ends, **LIMITS)
    shift(queue, lease_expires_at=45 + HOUR_S)
    assert queue.do(has_impossible_ends, **LIMITS)
    assert queue.do(shorten_impossible_ends, **LIMITS) == 1
    assert 30 < left_s(queue, job_id, "lease_expires_at") <= 45
    assert not queue.do(has_impossible_ends, **LIMITS)
    assert queue.do(reap_expired) == [], "a live worker has a whole lease to renew it"


def test_backward_costs_a_live_worker_nothing(queue: Any) -> None:
    claim = queue.run(queue.submit())
    shift(queue, lease_expires_at=45 + HOUR_S)
    queue.do(heartbeat, claim, lease_s=45, progress=None)
    assert not queue.do(has_impossible_ends, **LIMITS), "its next heartbeat sets the lease by the new clock"
    queue.do(finish_attempt, claim, {})
    assert queue.job(claim.job_id).state == JobState.SUCCEEDED


def test_backward_does_not_keep_a_job_waiting(queue: Any) -> None:
    job_id = queue.submit()
    shift(queue, available_at=300 + HOUR_S)
    assert queue.do(shorten_impossible_ends, **LIMITS) == 1
    assert 280 < left_s(queue, job_id, "available_at") <= 300
    shift(queue, available_at=250)
    assert queue.do(shorten_impossible_ends, **LIMITS) == 0


def test_what_has_ended_is_left_alone(queue: Any) -> None:
    claim = queue.run(queue.submit())
    queue.do(finish_attempt, claim, {})
    shift(queue, lease_expires_at=HOUR_S, available_at=HOUR_S)
    assert not queue.do(has_impossible_ends, **LIMITS)
    assert queue.do(shorten_impossible_ends, **LIMITS) == 0
