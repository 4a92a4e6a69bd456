"""The queue's switch and drained workers: nothing new begins, nothing is lost, no attempt is counted."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from results_db.clock import db_now
from results_db.errors import NotFound, WrongState
from results_db.queries.pending import has_server_job
from results_db.queue.control import pause_queue, queue_state, resume_queue
from results_db.queue.lease import finish_attempt, heartbeat
from results_db.queue.promote import next_server_job
from results_db.queue.relay import due_attempts
from results_db.queue.submit import PRIORITY, cancel_job, set_priority, submit_job
from results_db.queue.workers import drain_worker, has_silent_workers, mark_silent_workers
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Worker


def test_a_paused_queue_hands_out_and_claims_nothing(queue: Any) -> None:
    running, waiting = queue.run(queue.submit()), queue.submit()
    switch = queue.do(pause_queue, "the card is needed")
    assert switch.paused_at is not None
    assert queue.do(due_attempts) == []
    assert queue.claim(waiting) is None
    assert queue.states(waiting) == [AttemptState.QUEUED], "no attempt was counted"
    queue.do(heartbeat, running, lease_s=45, progress=None)
    queue.do(finish_attempt, running, {})
    assert queue.do(resume_queue).paused_at is None
    assert queue.do(due_attempts) == [queue.attempts(waiting)[0].id]
    assert queue.run(waiting).attempt_number == 1


def test_the_servers_own_jobs_wait_too(queue: Any) -> None:
    job_id = queue.submit(JobKind.FIT)
    queue.do(pause_queue)
    assert not queue.do(has_server_job, JobState.QUEUED)
    assert queue.do(next_server_job) is None
    queue.do(resume_queue)
    assert queue.do(has_server_job, JobState.QUEUED)
    assert queue.do(next_server_job).id == job_id


def test_a_pause_keeps_its_time_and_takes_the_new_reason(queue: Any) -> None:
    assert queue.do(queue_state).paused_at is None
    assert queue.do(resume_queue).paused_at is None
    first = queue.do(pause_queue, "one")
    again = queue.do(pause_queue, "two")
    assert (again.paused_at, again.reason) == (first.paused_at, "two")
    queue.do(resume_queue)
    assert (queue.do(queue_state).paused_at, queue.do(queue_state).reason) == (None, None)


def test_a_drained_worker_claims_nothing_and_finishes_what_it_has(queue: Any) -> None:
    claim, waiting = queue.run(queue.submit()), queue.submit()
    assert queue.do(drain_worker, "wrk_1").drain_requested
    assert queue.do(drain_worker, "wrk_1").drain_requested
    assert queue.claim(waiting) is None
    assert queue.do(due_attempts) == [queue.attempts(waiting)[0].id], "others may have it"
    queue.do(finish_attempt, claim, {})
    assert queue.job(claim.job_id).state == JobState.SUCCEEDED
    with pytest.raises(NotFound, match="wrk_none"):
        queue.do(drain_worker, "wrk_none")
    queue.do(lambda session: session.execute(update(Worker).values(state="down")))
    with pytest.raises(WrongState, match="only one that is up"):
        queue.do(drain_worker, "wrk_1")


def test_a_worker_that_fell_silent_counts_as_down(queue: Any) -> None:
    def seen(ago_s: float) -> None:
        queue.do(lambda session: session.execute(update(Worker).values(heartbeat_at=db_now(-ago_s), state="up")))

    seen(50)
    assert not queue.do(has_silent_workers)
    assert queue.do(mark_silent_workers) == []
    seen(70)
    assert queue.do(has_silent_workers)
    assert queue.do(mark_silent_workers) == ["one"]
    assert not queue.do(has_silent_workers)


def test_priority_may_change_until_the_end(queue: Any) -> None:
    first, second = queue.submit(), queue.submit()
    ids = [queue.attempts(job_id)[0].id for job_id in (first, second)]
    assert queue.do(due_attempts) == ids
    assert queue.do(set_priority, second, 3).priority == 3
    assert queue.do(due_attempts) == ids[::-1]
    queue.do(set_priority, second, -3)
    assert queue.do(due_attempts) == ids
    n_events = len(queue.events(second))
    queue.do(set_priority, second, -3)
    assert len(queue.events(second)) == n_events, "nothing changed, nothing is told"
    queue.do(cancel_job, first)
    with pytest.raises(WrongState, match="already cancelled"):
        queue.do(set_priority, first, 1)


def test_a_session_may_carry_the_priority(queue: Any) -> None:
    with queue.database.write() as session:
        session.info[PRIORITY] = 7
        urgent = submit_job(session, JobKind.PROBE, {})
        given = submit_job(session, JobKind.PROBE, {}, priority=0)
    assert (urgent.priority, given.priority) == (7, 0)
    assert queue.job(queue.submit()).priority == 0
