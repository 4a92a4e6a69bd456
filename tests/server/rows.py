"""Rows of every table, made from the columns alone: for tests that ask how lists and exports show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Table, UniqueConstraint, insert
from sqlalchemy.orm import Session

import results_db.tables  # noqa: F401  # fills the metadata
from results_db.base import Base
from results_db.clock import UtcDateTime

BORN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


#: (table, column) → values out of which its rows take theirs in turn; a table "" stands for every one
Choices = Mapping[tuple[str, str], Sequence[Any]]


def fill_tables(session: Session, n: int = 5, choices: Choices | None = None) -> None:
    """``n`` rows in each table: values come in pairs, every third value that may be null is."""
    for table in Base.metadata.sorted_tables:
        if table.name != "queue_controls":
            session.execute(insert(table), [_row(table, i, choices or {}) for i in range(n)])


def _row(table: Table, i: int, choices: Choices) -> dict[str, Any]:
    unique = {
        column.name
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
        for column in constraint.columns
    }
    unique |= {column.name for index in table.indexes if index.unique for column in index.columns}
    row = {column.name: _value(table, column, i, column.name in unique) for column in table.columns}
    for name in row:
        chosen = choices.get((table.name, name)) or choices.get(("", name))
        if chosen is not None and row[name] is not None:
            row[name] = chosen[i % len(chosen)]
    return row


def _value(table: Table, column: Column[Any], i: int, unique: bool) -> Any:
    kind = datetime if isinstance(column.type, UtcDateTime) else column.type.python_type
    if column.foreign_keys:
        target = next(iter(column.foreign_keys)).column
        return i + 1 if target.type.python_type is int else f"{target.table.name}_{i}"
    if column.primary_key:
        return i + 1 if kind is int else f"{table.name}_{i}"
    if column.nullable and i % 3 == 0 and not unique:
        return None
    step = i if unique else i // 2
    if kind is int:
        return step
    if kind is float:
        return 0.1 + 1.5 * step
    if kind is bool:
        return i % 2 == 0
    if kind is datetime:
        return BORN + timedelta(seconds=step, microseconds=5)
    if kind is str:
        return f"{column.name[0]}{step}"
    return {}
