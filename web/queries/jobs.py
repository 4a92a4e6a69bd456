"""A job as a line of a page, and everything about one job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, not_, or_, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.queries.parts import is_part, layers_summary, part_of, parts_among, parts_of
from results_db.states import TERMINAL, JobState
from results_db.tables import Attempt, Job, JobEvent, Study, Worker
from web.queries.actions import Action, job_actions
from web.queries.stale import stale_of
from web.queries.steps import step_label

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
    #: the layers of a split sweep: one line stands for them, and they can be unfolded
    parts: tuple[JobLine, ...] = ()
    #: why what it made is stale
    stale: str | None = None
    #: what a person may do to it now
    actions: tuple[Action, ...] = ()

    @property
    def parts_summary(self) -> str:
        """What the folded layers show."""
        return layers_summary([part.state for part in self.parts])

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
    #: the sweep that this job measures a layer of
    whole: JobLine | None
    last_event_id: int


def shown_state(job: Job, parts: Sequence[Job]) -> str:
    """The state that people see: a sweep that waits for its own layers runs as soon as one of them has begun."""
    if job.state != JobState.WAITING or not parts:
        return job.state
    return str((JobState.RUNNING if any(part.started_at for part in parts) else JobState.QUEUED).value)


def with_parts(jobs: Iterable[Job]) -> list[tuple[Job, list[Job]]]:
    """Each job with its parts; the parts of a job that is there do not stand beside it."""
    jobs = list(jobs)
    known = {job.id for job in jobs}
    return [(job, parts_among(job, jobs)) for job in jobs if part_of(job.params) not in known]


def job_line(
    job: Job,
    *,
    study_name: str | None = None,
    now: datetime | None = None,
    parts: Sequence[Job] = (),
    stale: str | None = None,
) -> JobLine:
    """The line of a row."""
    progress: dict[str, Any] = job.progress or {}
    state = shown_state(job, parts)
    is_running = state == JobState.RUNNING
    end = job.finished_at or (now or utc_now() if is_running else None)
    seconds = (end - job.started_at) / timedelta(seconds=1) if end and job.started_at else None
    wish = "cancel asked for" if job.cancel_requested else "pause asked for" if job.pause_requested else None
    return JobLine(
        id=job.id,
        label=step_label(job),
        kind=job.kind,
        state=state,
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
        parts=tuple(job_line(part, now=now) for part in parts),
        stale=stale,
        actions=job_actions(job),
    )


def job_lines(session: Session, *, states: Sequence[str], limit: int, newest_first: bool = True) -> tuple[JobLine, ...]:
    """Jobs that show any of the states; a split sweep stands for its layers."""
    live = [state for state in states if JobState(state) not in TERMINAL]
    split = select(Job.params["part_of"].as_string()).where(is_part(), Job.state.in_(live))
    wanted = or_(and_(Job.state.in_(states), not_(is_part())), Job.id.in_(split))
    query = select(Job, Study.name).outerjoin(Study, Study.id == Job.study_id).where(wanted)
    order = Job.finished_at.desc() if newest_first else Job.started_at
    rows = session.execute(query.order_by(order, Job.study_id, Job.position, Job.id).limit(limit)).all()
    now = utc_now()
    lines = (job_line(job, study_name=name, now=now, parts=parts_of(session, job)) for job, name in rows)
    return tuple(line for line in lines if line.state in states)


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
    before = session.scalars(select(Job).where(Job.id.in_(job.depends_on or [])).order_by(Job.position, Job.id)).all()
    parts = parts_among(job, before)
    whole = session.get(Job, part_of(job.params) or "")
    return JobPage(
        job=job,
        line=job_line(
            job,
            study_name=study.name if study else None,
            parts=parts,
            stale=stale_of(session, [job_id]).by_job.get(job_id),
        ),
        attempts=tuple(AttemptLine(attempt, worker) for attempt, worker in attempts),
        events=tuple(events),
        needs=tuple(job_line(need) for need in before if need not in parts),
        whole=job_line(whole, parts=parts_of(session, whole)) if whole else None,
        last_event_id=last,
    )
