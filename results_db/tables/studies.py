"""Studies and the gates that decide them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Study(CreatedAt, Base):
    """Phases 0–5 of the plan for one model, as a tree of jobs with gates between them."""

    __tablename__ = "studies"
    __table_args__ = (Index("ix_studies_name", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    state: Mapped[str]
    config: Mapped[dict[str, Any]]
    #: "stop" or "continue"
    on_no_go: Mapped[str]
    #: why it stopped: the gate and the plan's fallback
    reason: Mapped[str | None]
    #: uniform vs optimal at equal bytes, filled when the study ends
    headline: Mapped[dict[str, Any] | None]
    finished_at: Mapped[datetime | None]


class Gate(CreatedAt, Base):
    """A criterion of a phase, decided from the database."""

    __tablename__ = "gates"
    __table_args__ = (UniqueConstraint("study_id", "phase", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    phase: Mapped[int]
    name: Mapped[str]
    #: the question in one line
    question: Mapped[str]
    #: "GO", "NO-GO", "NOT DECIDABLE" or "NOT MEASURED"
    verdict: Mapped[str]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    ci_low: Mapped[float | None]
    ci_high: Mapped[float | None]
    unit: Mapped[str | None]
    explanation: Mapped[str]
    #: what the plan does on NO-GO
    fallback: Mapped[str | None]
    #: how many samples would decide it
    needed_samples: Mapped[int | None]
    #: since when something that it was computed from counts no more; null = it stands
    stale_at: Mapped[datetime | None]
    stale_reason: Mapped[str | None]
