"""Error models fitted to a sweep."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Fit(CreatedAt, Base):
    """E_i(b, r) = s_i·(α·2^(−βb) + γ·(r+1)^(−δ)), or the interpolation that replaces it."""

    __tablename__ = "fits"

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    #: "additive" or "monotone"
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
    #: mean absolute log error, leaving one config out
    cv_error: Mapped[float | None]
    #: {"beta_positive": true, "delta_positive": true, …}
    checks: Mapped[dict[str, Any]]
    #: [{layer_idx, projection, expert_idx, b_q, rank, error, predicted}, …]
    residuals: Mapped[list[Any]]
    seconds: Mapped[float]


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
