"""End a study when all its jobs have ended: its state, why, and its headline."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.queries.parts import part_of
from results_db.queue.transitions import lock_study
from results_db.states import TERMINAL, JobState, StudyState
from results_db.tables import Job, Study
from server.studies.headline import study_headline
from server.studies.steps import RANDOM, RIVALS


def studies_to_finish(session: Session) -> list[str]:
    """Ids of studies whose jobs have all ended and that do not know it yet."""
    ended = [state.value for state in TERMINAL]
    live = exists().where(Job.study_id == Study.id, Job.state.not_in(ended))
    return list(session.scalars(select(Study.id).where(Study.finished_at.is_(None), ~live)))


def finish_study(session: Session, study_id: str) -> None:
    """Set state, reason and headline; nothing where a retry came in between and a job lives again."""
    study = lock_study(session, study_id)
    jobs = session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.position)).all()
    if any(JobState(job.state) not in TERMINAL for job in jobs):
        return
    if study.state == StudyState.RUNNING:
        state, reason = _outcome(jobs)
        study.state = state.value
        study.reason = reason
    study.headline = study_headline(session, study, jobs)
    study.finished_at = utc_now()


def _outcome(jobs: Sequence[Job]) -> tuple[StudyState, str | None]:
    # a split sweep says what became of its layers
    jobs = [job for job in jobs if part_of(job.params) is None]
    for job in jobs:
        if job.state in (JobState.FAILED, JobState.DEAD) and not _is_hopeless_baseline(job):
            message = (job.error or {}).get("message", "no cause recorded")
            return StudyState.FAILED, f"{job.step} ({job.id}) is {job.state}: {message}"
    for job in jobs:
        if job.state == JobState.CANCELLED:
            return StudyState.CANCELLED, f"{job.step} ({job.id}) was cancelled"
    return StudyState.SUCCEEDED, None


def _is_hopeless_baseline(job: Job) -> bool:
    """What has nothing to offer within the budget says something, but does not break the study: a baseline, or random
    allocations where hardly any have these bytes."""
    kind, _, name = (job.step or "").partition("@")[0].partition(":")
    code = (job.error or {}).get("code")
    if kind != "allocate":
        return False
    return (name in RIVALS and code == "infeasible-budget") or (name == RANDOM and code != "unexpected-error")
