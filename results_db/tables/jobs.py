"""Jobs, their attempts, their events, and the workers that run them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Job(CreatedAt, Base):
    """A unit of work and its state; every step of a study is one."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("study_id", "step"),
        Index("ix_jobs_state_kind", "state", "kind"),
        Index("ix_jobs_study_id_id", "study_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str]
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id"))
    #: name within the study, for example "compress:optimal"
    step: Mapped[str | None]
    #: the plan's phase, 0 to 6
    phase: Mapped[int | None]
    #: order within the study
    position: Mapped[int] = mapped_column(default=0)
    params: Mapped[dict[str, Any]]
    #: parameters taken from other jobs' results when this one is promoted: {param: {"job": id, "key": key}}
    inputs: Mapped[dict[str, Any]] = mapped_column(default=dict)
    #: ids of jobs that must finish first
    depends_on: Mapped[list[Any]] = mapped_column(default=list)
    #: "succeeded": run when all of depends_on succeeded; "finished": whatever became of them
    run_when: Mapped[str] = mapped_column(default="succeeded")
    priority: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=3)
    #: {"done", "total", "message", "eta_s"}
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    #: {"code", "message", "type", "traceback", "retryable"}
    error: Mapped[dict[str, Any] | None]
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    pause_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: of the request that submitted it; logs of server and worker carry it
    trace_id: Mapped[str | None]


class Attempt(CreatedAt, Base):
    """One try at a worker job, with its own state and lease."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        Index("ix_attempts_state_lease_expires_at", "state", "lease_expires_at"),
        # two live attempts of one job cannot exist
        Index(
            "uq_attempts_job_id_live",
            "job_id",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    state: Mapped[str]
    lease_token: Mapped[str | None]
    #: by the database's clock
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    worker_id: Mapped[str | None] = mapped_column(ForeignKey("workers.id"))
    #: when the relay handed it to RQ; null = to be handed over
    enqueued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    peak_rss_bytes: Mapped[int | None] = mapped_column(BigInteger)
    peak_gpu_bytes: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None]
    #: not before this, by the database's clock: the wait between retries; null = at once
    available_at: Mapped[datetime | None]


class JobEvent(CreatedAt, Base):
    """One change of a job, written in the same transaction as the change. The id orders the event stream."""

    __tablename__ = "job_events"
    __table_args__ = (
        Index("ix_job_events_job_id_id", "job_id", "id"),
        Index("ix_job_events_study_id_id", "study_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id"))
    attempt_id: Mapped[str | None]
    #: "state", "progress", "worker_lost", "note"
    kind: Mapped[str]
    state: Mapped[str | None]
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Worker(CreatedAt, Base):
    """A worker process: where it runs and on which device."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    #: as asked for: "cpu", a GPU's name or UUID
    device: Mapped[str]
    device_kind: Mapped[str]
    device_uuid: Mapped[str | None]
    #: "up" or "down"
    state: Mapped[str]
    heartbeat_at: Mapped[datetime]
    versions: Mapped[dict[str, Any]] = mapped_column(default=dict)
    #: a person asked it to finish what it does and stop
    drain_requested: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())


class QueueControl(Base):
    """The queue's own switch: one row, made when it is first used."""

    __tablename__ = "queue_controls"

    #: always 1
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: since when no attempt is handed out or claimed; null = the queue runs
    paused_at: Mapped[datetime | None]
    reason: Mapped[str | None]
