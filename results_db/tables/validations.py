"""What joint KL and PPL allocations really have, beside what was predicted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Validation(CreatedAt, Base):
    """Allocations of one model evaluated jointly on held-out windows, and how well their order was predicted."""

    __tablename__ = "validations"
    __table_args__ = (UniqueConstraint("job_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id"))
    #: label within a study, for example "uniforms" or "choice"
    name: Mapped[str]
    #: name of the text, for example "stdlib" or a file's name
    dataset: Mapped[str]
    #: "measure" or "select"; never "report"
    split: Mapped[str]
    token_hash: Mapped[str]
    n_windows: Mapped[int]
    n_tokens: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[dict[str, Any]]
    #: compressed ones; the original is not counted
    n_allocations: Mapped[int]
    #: rank correlation of predicted and realised KL, with its 95 % interval; null where it is not defined
    spearman: Mapped[float | None]
    spearman_low: Mapped[float | None]
    spearman_high: Mapped[float | None]
    #: of log realised KL over log predicted KL
    log_slope: Mapped[float | None]
    log_slope_low: Mapped[float | None]
    log_slope_high: Mapped[float | None]
    #: geometric mean of realised / predicted KL
    kappa: Mapped[float | None]
    #: standard deviation of log realised KL around the line
    residual_sd: Mapped[float | None]
    #: whether the prediction passes the calibration check; null where it cannot be told
    calibrated: Mapped[bool | None]
    #: the allocation recommended after the guard
    winner_allocation_id: Mapped[str | None] = mapped_column(ForeignKey("allocations.id"))
    #: comparisons, the guard's verdict in words, optimism
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    seconds: Mapped[float]


class ValidationItem(Base):
    """One allocation in a validation; allocation_id null = the original model."""

    __tablename__ = "validation_items"
    __table_args__ = (UniqueConstraint("validation_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    validation_id: Mapped[str] = mapped_column(ForeignKey("validations.id"))
    position: Mapped[int]
    allocation_id: Mapped[str | None] = mapped_column(ForeignKey("allocations.id"))
    name: Mapped[str]
    #: the allocation's kind, or "original"
    kind: Mapped[str]
    matrix_bytes: Mapped[int] = mapped_column(BigInteger)
    #: Σ a·ε, nats per token
    predicted_kl: Mapped[float | None]
    #: joint KL to the original, nats per token
    kl: Mapped[float]
    #: standard error over windows
    kl_se: Mapped[float]
    #: mean negative log-likelihood, nats per token
    nll: Mapped[float]
    ppl: Mapped[float]


class ValidationWindow(Base):
    """One window of text; the same item_idx is the same text for every item of a validation."""

    __tablename__ = "validation_windows"
    __table_args__ = (UniqueConstraint("validation_item_id", "item_idx"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    validation_item_id: Mapped[int] = mapped_column(ForeignKey("validation_items.id"))
    item_idx: Mapped[int]
    #: mean over the window's tokens, nats per token
    kl: Mapped[float]
    #: summed negative log-likelihood, nats
    nll: Mapped[float]
    n_tokens: Mapped[int]
