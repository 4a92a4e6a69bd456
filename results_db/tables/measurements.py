"""What was measured: errors and bytes of (matrix, config)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Sweep(CreatedAt, Base):
    """A request to measure a grid of configs on the matrices of a model."""

    __tablename__ = "sweeps"

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    #: the configs as asked for, before a rank was clamped to a small matrix
    configs: Mapped[list[Any]]
    #: the hashes measured, after clamping
    config_hashes: Mapped[list[Any]]
    #: [{layer_idx, projection, expert_idx, requested_rank, rank}, …]
    clamped: Mapped[list[Any]] = mapped_column(default=list)
    n_cells: Mapped[int]


class MeasurementColumns:
    """What is known of one measured cell."""

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    #: the sweep and attempt that measured it first
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    layer_idx: Mapped[int]
    projection: Mapped[str]
    expert_idx: Mapped[int] = mapped_column(default=-1)
    out_features: Mapped[int]
    in_features: Mapped[int]
    config_hash: Mapped[str]
    config: Mapped[dict[str, Any]]
    b_q: Mapped[int]
    rank: Mapped[int]
    factor_bits_l: Mapped[int]
    factor_bits_r: Mapped[int]
    codebook: Mapped[str]
    #: of the trellis; null for the other codebooks
    states: Mapped[int | None]
    seed: Mapped[int]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    raw_mse: Mapped[float]
    normalized_mse: Mapped[float]
    calibration_weighted_error: Mapped[float]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    bits_per_weight: Mapped[float]
    seconds: Mapped[float]
    #: {"ranks": […], "captured": […]}: share of the weighted residual's energy that its best rank-r part holds; on
    #: cells of rank 0 alone
    residual_spectrum: Mapped[dict[str, Any] | None]


class Measurement(MeasurementColumns, CreatedAt, Base):
    """Error and bytes of one (matrix, config); unique by its key, so a restart cannot double it."""

    __tablename__ = "measurements"
    __table_args__ = (
        UniqueConstraint(
            "model_id",
            "layer_idx",
            "projection",
            "expert_idx",
            "config_hash",
            "calibration_id",
            "numerics_version",
            "device_kind",
            name="uq_measurements_key",
        ),
        Index("ix_measurements_calibration_id_config_hash", "calibration_id", "config_hash"),
        # all cells of a calibration in the order in which they lie: what an allocation reads
        Index("ix_measurements_calibration_id_id", "calibration_id", "id"),
        # a retired measurement's id is given to no other
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, sort_order=-1)


class RetiredMeasurement(MeasurementColumns, CreatedAt, Base):
    """A measurement that counts no more: a person found it bad, or a forced sweep measured its cell again.

    It lies in a table of its own, so that whoever reads ``measurements`` reads what counts.
    """

    __tablename__ = "retired_measurements"
    __table_args__ = (Index("ix_retired_measurements_calibration_id_config_hash", "calibration_id", "config_hash"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, sort_order=-1)
    #: the id that it had, which no later measurement gets
    measurement_id: Mapped[int]
    reason: Mapped[str]
    retired_at: Mapped[datetime]
    #: the sweep that measured the cell again; null where a person invalidated it
    replaced_by_sweep_id: Mapped[str | None] = mapped_column(ForeignKey("sweeps.id"))
