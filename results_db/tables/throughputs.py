"""How fast a machine is: what a probe measured, from which plans are priced."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Throughput(CreatedAt, Base):
    """One probe of one device."""

    __tablename__ = "throughputs"
    __table_args__ = (UniqueConstraint("job_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    hostname: Mapped[str]
    #: "cpu" or "cuda"
    device_kind: Mapped[str]
    #: of the processor or card
    device_name: Mapped[str]
    #: of the CPU that one job may use
    threads: Mapped[int]
    #: compress_core.plan.rates.Rates as its to_dict writes it
    rates: Mapped[dict[str, Any]]
    numerics_version: Mapped[int]
    #: that the probe took
    seconds: Mapped[float]
