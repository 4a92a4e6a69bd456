"""Metrics of a model on a task, with a record per item."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Evaluation(CreatedAt, Base):
    """A metric of a model on a task; compression_id null = the original model."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("content_hash"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    compression_id: Mapped[str | None] = mapped_column(ForeignKey("compressions.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    #: hash of model or compression, task, exact tokens and numerics: asked again, it is reused
    content_hash: Mapped[str]
    #: "perplexity"
    task: Mapped[str]
    #: name of the text, for example "stdlib" or a file's name
    dataset: Mapped[str]
    #: "calibrate", "measure", "select" or "report"
    split: Mapped[str]
    #: "ppl"
    metric: Mapped[str]
    value: Mapped[float]
    #: 95 % interval over windows
    ci_low: Mapped[float]
    ci_high: Mapped[float]
    #: mean negative log-likelihood, nats per token
    nll: Mapped[float]
    bits_per_byte: Mapped[float | None]
    n_items: Mapped[int]
    n_tokens: Mapped[int] = mapped_column(BigInteger)
    token_hash: Mapped[str]
    text: Mapped[dict[str, Any]]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    seconds: Mapped[float]


class EvaluationItem(Base):
    """One window of text; the same item_idx is the same text in every evaluation with the same token_hash."""

    __tablename__ = "evaluation_items"
    __table_args__ = (UniqueConstraint("evaluation_id", "item_idx"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"))
    item_idx: Mapped[int]
    #: summed negative log-likelihood, nats
    nll: Mapped[float]
    n_tokens: Mapped[int]
