"""Exports that never hold more than a batch, nor a transaction while a slow reader reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select

from results_db import Database
from results_db.tables import Measurement
from server.kit.answers import plain, to_json

_BATCH = 1000
COLUMNS = tuple(column.key for column in Measurement.__mapper__.column_attrs)
#: a spreadsheet would run a text cell that begins with one of these
_FORMULA = ("=", "+", "-", "@")


def export_jsonl(database: Database, query: Select[tuple[Measurement]]) -> Iterator[str]:
    """One JSON object a line, oldest first."""
    for batch in _batches(database, query):
        yield "".join(to_json(row) + "\n" for row in batch)


def export_csv(database: Database, query: Select[tuple[Measurement]]) -> Iterator[str]:
    """A header and one row a measurement, oldest first; ``config`` as JSON text."""
    yield _csv_lines([COLUMNS])
    for batch in _batches(database, query):
        yield _csv_lines([_cells(row) for row in batch])


def _batches(database: Database, query: Select[tuple[Measurement]]) -> Iterator[list[Measurement]]:
    last = 0
    while True:
        with database.read() as session:
            page = query.where(Measurement.id > last).order_by(Measurement.id).limit(_BATCH)
            rows: list[Measurement] = list(session.scalars(page))
        if not rows:
            return
        yield rows
        last = rows[-1].id


def _cells(row: Measurement) -> list[Any]:
    values = row.as_dict()
    return [_cell(values[name]) for name in COLUMNS]


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, dict | list):
        return to_json(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _csv_lines(rows: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
