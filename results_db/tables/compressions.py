"""Packed models on disk."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Compression(CreatedAt, Base):
    """A packed model made from an allocation; equal allocations share one."""

    __tablename__ = "compressions"
    __table_args__ = (
        UniqueConstraint(
            "model_id",
            "calibration_id",
            "content_hash",
            "numerics_version",
            "device_kind",
            name="uq_compressions_key",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"))
    #: the allocation that it was first made from
    allocation_id: Mapped[str] = mapped_column(ForeignKey("allocations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    artefact_id: Mapped[str] = mapped_column(ForeignKey("artefacts.id"))
    content_hash: Mapped[str]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    #: matrix + fixed bytes that the allocation promised
    expected_bytes: Mapped[int] = mapped_column(BigInteger)
    #: bytes of the weight files on disk
    actual_bytes: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
