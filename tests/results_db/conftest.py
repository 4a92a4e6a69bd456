"""Jobs, workers and a clock that can be moved: leases are made to run out by writing their end, never by waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.queue.lease import Claim, claim_attempt
from results_db.queue.submit import submit_job
from results_db.states import AttemptState, JobKind
from results_db.tables import Attempt, Job, JobEvent, Worker

LEASE_S = 45.0


class Queue:
    """Short words for what the tests do to the queue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.write() as session:
            session.add(
                Worker(
                    id="wrk_1",
                    name="one",
                    hostname="here",
                    pid=1,
                    device="cpu",
                    device_kind="cpu",
                    state="up",
                    heartbeat_at=utc_now(),
                )
            )

    def do(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``action(session, …)`` in a transaction."""
        with self.database.write() as session:
            return action(session, *args, **kwargs)

    def submit(self, kind: JobKind = JobKind.SWEEP, **options: Any) -> str:
        return str(self.do(submit_job, kind, {"model_id": "mod_1"}, **options).id)

    def claim(self, job_id: str) -> Claim | None:
        """Claim the job's newest attempt."""
        attempt = self.attempts(job_id)[-1]
        return self.do(claim_attempt, attempt.id, worker_id="wrk_1", lease_s=LEASE_S)  # type: ignore[no-any-return]

    def run(self, job_id: str) -> Claim:
        """Claim the job's newest attempt, which must be free."""
        claim = self.claim(job_id)
        assert claim is not None
        return claim

    def due(self, job_id: str) -> None:
        """Let the wait of a queued attempt be over."""

        def move(session: Session) -> None:
            queued = (Attempt.job_id == job_id, Attempt.state == AttemptState.QUEUED.value)
            session.execute(update(Attempt).where(*queued).values(available_at=None))

        self.do(move)

    def expire(self, claim: Claim) -> None:
        """Let the database's clock pass the end of a lease."""

        def move(session: Session) -> None:
            session.execute(update(Attempt).where(Attempt.id == claim.attempt_id).values(lease_expires_at=db_now(-1.0)))

        self.do(move)

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))

    def states(self, job_id: str) -> list[AttemptState]:
        return [AttemptState(attempt.state) for attempt in self.attempts(job_id)]

    def events(self, job_id: str) -> list[tuple[str, str | None]]:
        with self.database.read() as session:
            rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id)).all()
            return [(row.kind, row.state) for row in rows]


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)
