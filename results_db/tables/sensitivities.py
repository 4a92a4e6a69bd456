"""How much each matrix matters: what was measured at anchors, what was concluded, and what layers lose."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class SensitivityAnchor(CreatedAt, Base):
    """One matrix alone is changed at one anchor: the nats of KL that it costs, per unit of the error that it is."""

    __tablename__ = "sensitivity_anchors"
    __table_args__ = (
        UniqueConstraint(
            "model_id",
            "layer_idx",
            "projection",
            "expert_idx",
            "method",
            "anchor_config_hash",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name="uq_sensitivity_anchors_key",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    #: "kl_anchor", "fisher_diagonal", "fisher_output", "higgs" or "reanchored"; "company": a whole layer restored
    method: Mapped[str]
    layer_idx: Mapped[int]
    projection: Mapped[str]
    expert_idx: Mapped[int] = mapped_column(default=-1)
    #: of the anchor config; higgs: "noise-0.05"; reanchored: the incumbent allocation's content_hash
    anchor_config_hash: Mapped[str]
    #: the config; higgs: {"noise": relative Frobenius norm}; reanchored: {"allocation_id": …}
    anchor_config: Mapped[dict[str, Any]]
    #: calibration_weighted_error of the matrix at the anchor; higgs: normalized_mse
    anchor_error: Mapped[float]
    #: nats per token, measured or predicted
    kl: Mapped[float]
    #: standard error over sequences, nats per token
    kl_se: Mapped[float]
    #: kl / anchor_error
    sensitivity: Mapped[float]
    n_sequences: Mapped[int]
    n_tokens: Mapped[int] = mapped_column(BigInteger)
    token_hash: Mapped[str]
    text: Mapped[dict[str, Any]]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    seconds: Mapped[float]
    #: nats per token of each sequence, in the order of the text: what the bootstrap resamples
    kl_per_sequence: Mapped[list[Any] | None]


class SensitivityEstimate(CreatedAt, Base):
    """a_i: nats of KL per unit of error of one matrix, all anchors together, shrunk toward its projection's mean."""

    __tablename__ = "sensitivity_estimates"
    __table_args__ = (
        UniqueConstraint(
            "model_id",
            "layer_idx",
            "projection",
            "expert_idx",
            "method",
            "metric",
            "incumbent_hash",
            "applies_to",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name="uq_sensitivity_estimates_key",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    #: the job that estimated it last
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    method: Mapped[str]
    #: the error that it is per unit of: "calibration_weighted_error" or "normalized_mse"
    metric: Mapped[str]
    #: of method reanchored: content_hash of the allocation that it was measured at; else empty
    incumbent_hash: Mapped[str] = mapped_column(default="")
    #: which configs it speaks of: "all", "rank0" (from anchors without a low-rank part) or "low_rank" (with one)
    applies_to: Mapped[str] = mapped_column(default="all")
    token_hash: Mapped[str]
    layer_idx: Mapped[int]
    projection: Mapped[str]
    expert_idx: Mapped[int] = mapped_column(default=-1)
    value: Mapped[float]
    #: standard error of log(value)
    log_se: Mapped[float]
    #: 95 % interval of value
    low: Mapped[float]
    high: Mapped[float]
    #: before shrinking; null where the matrix has no anchor of its own
    raw: Mapped[float | None]
    raw_log_se: Mapped[float | None]
    #: of the matrix's own anchors in the estimate, 0 to 1; the rest is its projection's mean
    own_weight: Mapped[float]
    n_anchors: Mapped[int]
    #: anchors whose KL was not above 0 and was raised to a floor
    n_floored: Mapped[int]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]


class LayerFidelityRow(CreatedAt, Base):
    """How true a block's output stays when the block alone is compressed."""

    __tablename__ = "layer_fidelities"
    __table_args__ = (
        UniqueConstraint(
            "model_id",
            "layer_idx",
            "config_hash",
            "calibration_id",
            "token_hash",
            "numerics_version",
            "device_kind",
            name="uq_layer_fidelities_key",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    layer_idx: Mapped[int]
    config_hash: Mapped[str]
    config: Mapped[dict[str, Any]]
    #: of the block's outputs with and without compression
    cosine: Mapped[float]
    cosine_se: Mapped[float | None]
    #: ‖ŷ − y‖² / ‖y‖² of the block's outputs
    relative_error: Mapped[float]
    relative_error_se: Mapped[float | None]
    n_sequences: Mapped[int]
    token_hash: Mapped[str]
    text: Mapped[dict[str, Any]]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    seconds: Mapped[float]
