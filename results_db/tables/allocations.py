"""One config per matrix under a byte budget."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Allocation(CreatedAt, Base):
    """An allocation and the proof of its optimality. Uniform is an allocation too."""

    __tablename__ = "allocations"
    __table_args__ = (Index("ix_allocations_content_hash", "content_hash"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    #: null when nothing measured was needed (uniform)
    calibration_id: Mapped[str | None] = mapped_column(ForeignKey("calibrations.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id"))
    #: label within a study, for example "optimal", "uniform", "rank0", "rtn", "gptq", "manual"
    name: Mapped[str]
    #: as in results_db.params.AllocateParams; the members of kinds "random" and "uniforms" are a row each
    kind: Mapped[str]
    #: "kl" = Σ a·ε in nats, "error" = Σ ε, or another method's sensitivities; null where nothing was minimised
    objective: Mapped[str | None]
    #: "decoder" or "model"
    scope: Mapped[str]
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: bytes of the compressed matrices
    matrix_bytes: Mapped[int] = mapped_column(BigInteger)
    #: every other byte of the packed weights
    fixed_bytes: Mapped[int] = mapped_column(BigInteger)
    #: total in the budget's scope
    total_bytes: Mapped[int] = mapped_column(BigInteger)
    bits_per_weight: Mapped[float]
    objective_value: Mapped[float | None]
    lower_bound: Mapped[float | None]
    #: true only when proven
    optimal: Mapped[bool | None]
    #: objective units per byte
    shadow_price: Mapped[float | None]
    n_distinct_configs: Mapped[int]
    #: hash of the items: two allocations with equal items compress to the same model
    content_hash: Mapped[str]
    #: the overrides per matrix, as the compress job takes them
    overrides_yaml: Mapped[str] = mapped_column(Text)
    #: solver figures, candidates, what was clamped
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    seconds: Mapped[float]
    #: Σ a·ε in nats with the KL sensitivities, whatever was minimised; null where they or an error are not measured
    predicted_kl: Mapped[float | None]
    #: results_db.params.ConstraintSpec as it was asked for; null = none
    constraints: Mapped[dict[str, Any] | None]
    #: of a random allocation
    seed: Mapped[int | None]
    #: since when something that it was computed from counts no more; null = it stands
    stale_at: Mapped[datetime | None]
    stale_reason: Mapped[str | None]


class AllocationItem(Base):
    """The config of one matrix in an allocation."""

    # the view that joins the allocation's name to it is called allocation_items
    __tablename__ = "allocation_choices"
    __table_args__ = (UniqueConstraint("allocation_id", "layer_idx", "projection", "expert_idx"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    allocation_id: Mapped[str] = mapped_column(ForeignKey("allocations.id"))
    layer_idx: Mapped[int]
    projection: Mapped[str]
    expert_idx: Mapped[int] = mapped_column(default=-1)
    config_hash: Mapped[str]
    config: Mapped[dict[str, Any]]
    b_q: Mapped[int]
    rank: Mapped[int]
    #: the rank asked for where it was clamped to the matrix
    requested_rank: Mapped[int | None]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    #: measured calibration_weighted_error; null where it is not measured
    error: Mapped[float | None]
    #: nats per unit of error that the solver was given
    sensitivity: Mapped[float | None]
    #: what the objective loses at least if the matrix takes the next best config at the shadow price; null where
    #: nothing was proven
    regret: Mapped[float | None]
