"""Which rows of an export: one set of filters for all tables, each valid where the table has the column."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from fastapi import Depends, Query
from pydantic import AwareDatetime
from sqlalchemy import ColumnElement

from server.exports.catalogue import Export
from server.kit.checks import check_projection
from server.kit.problem import invalid
from server.kit.rows import Number

_TIMES = ("created_after", "created_before")


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """None restricts nothing."""

    model_id: str | None = None
    calibration_id: str | None = None
    study_id: str | None = None
    job_id: str | None = None
    sweep_id: str | None = None
    fit_id: str | None = None
    allocation_id: str | None = None
    compression_id: str | None = None
    evaluation_id: str | None = None
    validation_id: str | None = None
    kind: str | None = None
    state: str | None = None
    name: str | None = None
    method: str | None = None
    split: str | None = None
    layer_idx: Number = None
    projection: str | None = None
    b_q: Number = None
    rank: Number = None
    codebook: str | None = None
    states: Number = None
    created_after: Annotated[AwareDatetime | None, Query(description="only rows made at this time or later")] = None
    created_before: Annotated[AwareDatetime | None, Query(description="only rows made before this time")] = None

    def given(self) -> dict[str, str]:
        """Those that restrict, as text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}

    def conditions(self, export: Export) -> list[ColumnElement[bool]]:
        """For the export's table.

        Raises:
            Problem: the table has no such column, or there is no such projection.
        """
        check_projection(self.projection)
        conditions: list[ColumnElement[bool]] = []
        for name in self.given():
            column = "created_at" if name in _TIMES else name
            if column not in export.columns:
                known = [each for each in filter_names(export) if each not in _TIMES]
                message = f"{export.name} have no {column}: filter by {', '.join(known) or 'nothing'}"
                raise invalid(name, message)
            value = getattr(self, name)
            if name == "created_after":
                conditions.append(export.column(column) >= value)
            elif name == "created_before":
                conditions.append(export.column(column) < value)
            else:
                conditions.append(export.column(column) == value)
        return conditions


def filter_names(export: Export) -> tuple[str, ...]:
    """The filters that the export's table has."""
    names = [each.name for each in fields(ExportFilter)]
    return tuple(name for name in names if ("created_at" if name in _TIMES else name) in export.columns)


Filter = Annotated[ExportFilter, Depends(ExportFilter)]
