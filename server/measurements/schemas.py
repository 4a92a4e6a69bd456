"""Measurements as the API shows them, and what to filter them by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Select, select

from results_db.tables import Measurement, RetiredMeasurement
from server.kit.answers import page_model, row_model
from server.kit.checks import check_projection
from server.kit.rows import Number

MeasurementRow = row_model(Measurement)
MeasurementPage = page_model(MeasurementRow)
RetiredRow = row_model(RetiredMeasurement)
RetiredPage = page_model(RetiredRow)


@dataclass(frozen=True, slots=True)
class MeasurementFilter:
    """Which measurements; None restricts nothing."""

    model_id: str | None = None
    calibration_id: str | None = None
    sweep_id: str | None = None
    layer_idx: Number = None
    projection: str | None = None
    b_q: Number = None
    rank: Number = None
    codebook: str | None = None
    states: Number = None

    def query(self, table: type[Measurement] | type[RetiredMeasurement] = Measurement) -> Select[Any]:
        """The rows, in no order yet.

        Raises:
            Problem: the projection is unknown.
        """
        return select(table).where(*self.conditions(table))

    def conditions(
        self, table: type[Measurement] | type[RetiredMeasurement] = Measurement
    ) -> tuple[ColumnElement[bool], ...]:
        """One for each filter that is given.

        Raises:
            Problem: the projection is unknown.
        """
        check_projection(self.projection)
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return tuple(getattr(table, name) == value for name, value in given.items() if value is not None)


Filter = Annotated[MeasurementFilter, Depends(MeasurementFilter)]


class InvalidateRequest(BaseModel):
    """Why measurements count no more."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "measured while the fan stood still", "dry_run": True}]},
    )

    #: kept with the measurements, and shown wherever something was computed from them
    reason: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
    #: only tell what would become of what
    dry_run: bool = False


class StaleRows(BaseModel):
    """Ids of what was computed from the measurements and had not been stale before."""

    fits: list[str]
    allocations: list[str]
    gates: list[str]


class Invalidation(BaseModel):
    """What was done, or with dry_run what would be."""

    dry_run: bool
    #: how many
    measurements: int
    stale: StaleRows
