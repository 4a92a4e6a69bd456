"""Random schedules over the real transitions. Invariants: at most one live attempt, terminal states are left by a
retry alone, attempt numbers count up without gaps, a stale token never writes, counted attempts respect the cap."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from results_db import Database
from results_db.base import Base
from results_db.clock import db_now, utc_now
from results_db.errors import LeaseLost, WrongState
from results_db.queue.lease import (
    Claim,
    claim_attempt,
    counted_attempts,
    fail_attempt,
    finish_attempt,
    heartbeat,
    hold_lease,
    lose_attempt,
    reap_expired,
    release_attempt,
)
from results_db.queue.promote import promote_waiting
from results_db.queue.submit import cancel_job, pause_job, resume_job, retry_job, submit_job
from results_db.states import ALLOWED, TERMINAL, AttemptState, JobKind, JobState
from results_db.tables import Attempt, Job, JobEvent, Worker

LIVE = (AttemptState.QUEUED, AttemptState.RUNNING)


class Schedules(RuleBasedStateMachine):
    """Two jobs (the second needs the first), workers that claim, die, come back late, and people that interfere."""

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
            session.add(
                Worker(
                    id="w",
                    name="w",
                    hostname="h",
                    pid=1,
                    device="cpu",
                    device_kind="cpu",
                    state="up",
                    heartbeat_at=utc_now(),
                )
            )
            first = submit_job(session, JobKind.CALIBRATE, {}, max_attempts=2)
            second = submit_job(session, JobKind.SWEEP, {}, depends_on=[first.id], max_attempts=2)
        self.jobs = [first.id, second.id]
        self.claims: list[Claim] = []
        self.results: dict[str, Any] = {}

    # --- what may happen ---

    @rule(which=st.integers(0, 1))
    def claim(self, which: int) -> None:
        with self.database.write() as session:
            ids = session.scalars(select(Attempt.id).where(Attempt.job_id == self.jobs[which])).all()
            taken = [c for i in ids if (c := claim_attempt(session, i, worker_id="w", lease_s=45))]
        assert len(taken) <= 1
        self.claims += taken

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), action=st.sampled_from(["beat", "finish", "fail", "again", "release", "record"]))
    def work(self, data: st.DataObject, action: str) -> None:
        """A worker, perhaps one that was given up long ago, does something under its token."""
        claim = data.draw(st.sampled_from(self.claims))
        with self.database.read() as session:
            attempt = session.get_one(Attempt, claim.attempt_id)
            owns = attempt.state == AttemptState.RUNNING and attempt.lease_token == claim.token
        try:
            with self.database.write() as session:
                self._act(session, claim, action)
        except LeaseLost:
            assert not owns
        else:
            assert owns, f"{action} under a stale token"

    def _act(self, session: Session, claim: Claim, action: str) -> None:
        if action == "beat":
            heartbeat(session, claim, lease_s=45, progress={"done": 1, "total": 2})
        elif action == "record":
            hold_lease(session, claim)
        elif action == "finish":
            finish_attempt(session, claim, {"by": claim.attempt_id})
        elif action == "release":
            release_attempt(session, claim, to=JobState.QUEUED)
        else:
            error = {"code": "x", "message": "x", "retryable": action == "again"}
            fail_attempt(session, claim, error)

    @rule()
    def time_passes(self) -> None:
        with self.database.write() as session:
            session.execute(
                update(Attempt).where(Attempt.state == AttemptState.RUNNING.value).values(lease_expires_at=db_now(-1))
            )
            reap_expired(session)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_horse_dies(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        with self.database.write() as session:
            lose_attempt(session, session.get_one(Attempt, claim.attempt_id), "killed", signal=9)

    @rule()
    def promote(self) -> None:
        with self.database.write() as session:
            promote_waiting(session)

    @rule(which=st.integers(0, 1), ask=st.sampled_from([cancel_job, pause_job, resume_job, retry_job]))
    def a_person_asks(self, which: int, ask: Any) -> None:
        try:
            with self.database.write() as session:
                ask(session, self.jobs[which])
        except WrongState:
            return
        if ask is retry_job:
            self.results.pop(self.jobs[which], None)

    # --- what must hold ---

    @invariant()
    def holds(self) -> None:
        with self.database.read() as session:
            for job_id in self.jobs:
                self._check(session, session.get_one(Job, job_id))

    def _check(self, session: Session, job: Job) -> None:
        attempts = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)).all()
        states = [AttemptState(a.state) for a in attempts]
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        live = [state for state in states if state in LIVE]
        expected = {JobState.QUEUED: [AttemptState.QUEUED], JobState.RUNNING: [AttemptState.RUNNING]}
        assert live == expected.get(JobState(job.state), [])
        assert all(state not in LIVE for state in states[:-1]), "only the newest attempt lives"
        assert all((a.finished_at is not None) == (a.state not in LIVE) for a in attempts)
        assert counted_attempts(session, job.id) <= job.max_attempts
        assert (job.finished_at is not None) == (JobState(job.state) in TERMINAL)
        if job.state == JobState.SUCCEEDED:
            assert job.result == {"by": attempts[-1].id}
            assert states[-1] == AttemptState.SUCCEEDED
            assert self.results.setdefault(job.id, job.result) == job.result
        history = session.scalars(select(JobEvent.state).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
        assert history[-1] == job.state
        for before, after in pairwise(history):
            assert before == after or JobState(str(after)) in ALLOWED[JobState(str(before))]


def run_schedules(database: Database, examples: int) -> None:
    machine = type("BoundSchedules", (Schedules,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        ),
    )


def test_random_schedules(database: Database) -> None:
    run_schedules(database, 25)
