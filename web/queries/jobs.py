"""A job as a line of a page, and everything about one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.states import JobState
from results_db.tables import Attempt, Job, JobEvent, Study, Worker

#: events shown on a job's page, the newest
EVENTS_SHOWN = 200


@dataclass(frozen=True, slots=True)
class JobLine:
    """One job in a list."""

    id: str
    label: str
    kind: str
    state: str
    study_id: str | None
    study_name: str | None
    done: float | None
    total: float | None
    message: str
    eta_s: float | None
    seconds: float | None
    created_at: datetime
    #: why it failed or was skipped, in one line
    reason: str | None
    #: what a person asked for and the worker has not done yet
    wish: str | None

    @property
    def fraction(self) -> float:
        """Share done, 0 to 1."""
        if self.state == JobState.SUCCEEDED:
            return 1.0
        return min(1.0, self.done / self.total) if self.done and self.total else 0.0


@dataclass(frozen=True, slots=True)
class AttemptLine:
    """One try at a job, with the name of its worker."""

    attempt: Attempt
    worker: str | None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Everything about one job."""

    job: Job
    line: JobLine
    attempts: tuple[AttemptLine, ...]
    #: newest first, progress left out
    events: tuple[JobEvent, ...]
    needs: tuple[JobLine, ...]
    last_event_id: int


def step_label(job: Job) -> str:
    """``compress:optimal`` → ``compress · optimal``."""
    return (job.step or job.kind).replace(":", " · ")


def job_line(job: Job, *, study_name: str | None = None, now: datetime | None = None) -> JobLine:
    """The line of a row."""
    progress: dict[str, Any] = job.progress or {}
    is_running = job.state == JobState.RUNNING
    end = job.finished_at or (now or utc_now() if is_running else None)
    seconds = (end - job.started_at) / timedelta(seconds=1) if end and job.started_at else None
    wish = "cancel asked for" if job.cancel_requested else "pause asked for" if job.pause_requested else None
    return JobLine(
        id=job.id,
        label=step_label(job),
        kind=job.kind,
        state=job.state,
        study_id=job.study_id,
        study_name=study_name,
        done=progress.get("done"),
        total=progress.get("total"),
        message=str(progress.get("message") or ""),
        eta_s=progress.get("eta_s") if is_running else None,
        seconds=seconds,
        created_at=job.created_at,
        reason=str(job.error.get("message") or job.error.get("code") or "") if job.error else None,
        wish=wish if is_running else None,
    )


def job_lines(session: Session, *, states: Sequence[str], limit: int, newest_first: bool = True) -> tuple[JobLine, ...]:
    """Jobs in any of the states."""
    query = select(Job, Study.name).outerjoin(Study, Study.id == Job.study_id).where(Job.state.in_(states))
    order = Job.finished_at.desc() if newest_first else Job.started_at
    rows = session.execute(query.order_by(order, Job.study_id, Job.position, Job.id).limit(limit)).all()
    now = utc_now()
    return tuple(job_line(job, study_name=name, now=now) for job, name in rows)


def last_event_id(session: Session) -> int:
    """Read first in a page's transaction: every later event is one that the page does not show yet."""
    return session.scalar(select(func.max(JobEvent.id))) or 0


def job_page(session: Session, job_id: str) -> JobPage | None:
    """None: no such job."""
    last = last_event_id(session)
    job = session.get(Job, job_id)
    if job is None:
        return None
    study = session.get(Study, job.study_id) if job.study_id else None
    attempts = session.execute(
        select(Attempt, Worker.name)
        .outerjoin(Worker, Worker.id == Attempt.worker_id)
        .where(Attempt.job_id == job_id)
        .order_by(Attempt.number.desc())
    ).all()
    events = session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.kind != "progress")
        .order_by(JobEvent.id.desc())
        .limit(EVENTS_SHOWN)
    ).all()
    needs = session.scalars(select(Job).where(Job.id.in_(job.depends_on or [])).order_by(Job.position, Job.id)).all()
    return JobPage(
        job=job,
        line=job_line(job, study_name=study.name if study else None),
        attempts=tuple(AttemptLine(attempt, worker) for attempt, worker in attempts),
        events=tuple(events),
        needs=tuple(job_line(need) for need in needs),
        last_event_id=last,
    )
