"""Measurements as the API shows them, and what to filter them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query
from sqlalchemy import Select, select

from results_db.tables import Measurement
from server.kit.answers import page_model, row_model
from server.kit.checks import check_projection
from server.kit.pagination import LARGEST_ID
from server.kit.rows import filtered

MeasurementRow = row_model(Measurement)
MeasurementPage = page_model(MeasurementRow)

Number = Annotated[int | None, Query(ge=0, le=LARGEST_ID)]


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

    def query(self) -> Select[tuple[Measurement]]:
        """The rows, in no order yet.

        Raises:
            Problem: the projection is unknown.
        """
        check_projection(self.projection)
        columns: dict[Any, Any] = {
            Measurement.model_id: self.model_id,
            Measurement.calibration_id: self.calibration_id,
            Measurement.sweep_id: self.sweep_id,
            Measurement.layer_idx: self.layer_idx,
            Measurement.projection: self.projection,
            Measurement.b_q: self.b_q,
            Measurement.rank: self.rank,
            Measurement.codebook: self.codebook,
            Measurement.states: self.states,
        }
        return filtered(select(Measurement), columns)


Filter = Annotated[MeasurementFilter, Depends(MeasurementFilter)]
