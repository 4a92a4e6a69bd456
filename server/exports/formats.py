"""The forms of a file: JSON lines, CSV, Parquet. Each takes batches and gives bytes, one piece a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from results_db.cells import csv_lines, json_text, plain
from server.exports.batches import Rows
from server.exports.parquet import write_parquet


class Format(StrEnum):
    """How the rows are written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


MEDIA_TYPES: dict[Format, str] = {
    Format.JSONL: "application/x-ndjson",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
}


def write_jsonl(rows: Rows, schema: dict[str, Any]) -> Iterator[bytes]:
    """First ``{"schema": …}``, then one object a row."""
    yield _line({"schema": schema})
    names = list(rows.export.columns)
    for batch in rows:
        yield b"".join(_line(dict(zip(names, row, strict=True))) for row in batch)


def write_csv(rows: Rows, schema: dict[str, Any]) -> Iterator[bytes]:
    """The names, then one line a row: null is an empty cell, objects are JSON, formulas are disarmed."""
    yield csv_lines([list(rows.export.columns)]).encode(errors="replace")
    for batch in rows:
        yield csv_lines(batch).encode(errors="replace")


WRITERS: dict[Format, Callable[[Rows, dict[str, Any]], Iterator[bytes]]] = {
    Format.JSONL: write_jsonl,
    Format.CSV: write_csv,
    Format.PARQUET: write_parquet,
}


def _line(value: dict[str, Any]) -> bytes:
    # a lone surrogate, which JSON may escape and UTF-8 cannot say, becomes a question mark
    return json_text(plain(value)).encode(errors="replace") + b"\n"
