"""Error models fitted to a sweep."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint, true
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Fit(CreatedAt, Base):
    """One form of error model, fitted to the cells of one codebook. Forms that are compared share a group."""

    __tablename__ = "fits"

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    #: "additive", "multiplicative", "log_linear" or "monotone"
    form: Mapped[str]
    #: the error that was fitted
    metric: Mapped[str]
    #: only measurements of this codebook were used
    codebook: Mapped[str]
    #: and with so many states of the trellis; null = all
    states: Mapped[int | None]
    n_observations: Mapped[int]
    r2: Mapped[float]
    r2_log: Mapped[float]
    r2_by_projection: Mapped[dict[str, Any]]
    r2_by_group: Mapped[dict[str, Any]]
    #: root mean square of the log error, leaving one config out
    cv_error: Mapped[float | None]
    #: {"beta_positive": true, "delta_positive": true, …}
    checks: Mapped[dict[str, Any]]
    #: [{layer_idx, projection, expert_idx, b_q, rank, error, predicted}, …]
    residuals: Mapped[list[Any]]
    seconds: Mapped[float]
    #: only measurements with factors of so many bits were used; null = all
    factor_bits_l: Mapped[int | None]
    factor_bits_r: Mapped[int | None]
    #: root mean square of the log error, leaving one layer out
    cv_layer_error: Mapped[float | None]
    #: what cross-validation found, in whole and by group
    cv: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    #: the one of its group that allocations and gates go by
    chosen: Mapped[bool] = mapped_column(default=True, server_default=true())
    #: of the fits that were made together and compared; null = alone
    group_id: Mapped[str | None]
    #: the selection with its reasons, clusters of layers, what was pooled
    details: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    #: since when something that it was computed from counts no more; null = it stands
    stale_at: Mapped[datetime | None]
    stale_reason: Mapped[str | None]


class FitParameter(Base):
    """One parameter of a fit; matrix columns are null for global ones."""

    __tablename__ = "fit_parameters"
    __table_args__ = (UniqueConstraint("fit_id", "name", "layer_idx", "projection", "expert_idx"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    fit_id: Mapped[str] = mapped_column(ForeignKey("fits.id"))
    name: Mapped[str]
    layer_idx: Mapped[int | None]
    projection: Mapped[str | None]
    expert_idx: Mapped[int | None]
    value: Mapped[float]
    standard_error: Mapped[float | None]
    #: 95 % interval
    low: Mapped[float | None]
    high: Mapped[float | None]
