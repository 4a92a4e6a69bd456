"""A few rows in every table of any schema, made from the tables alone, with values that are easily lost on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, DateTime, Double, Float, Integer, MetaData, Table, inspect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

import results_db.tables  # noqa: F401 - completes the metadata
from results_db import Database
from results_db.base import Base

_NOON = datetime(2026, 2, 28, 12, 0, 0, 123456, tzinfo=UTC)
_FLOATS = (0.1, 1e-310, 1.7976931348623157e308, -math.pi, 1 / 3)
_INTS = (2**31 - 1, 0, -1, 7, 12345)
_BIG_INTS = (2**63 - 1, 2**53 + 1, -(2**62), 0, 9)
_JSON = (
    {"a": 0.1, "ä": [1, None, True], "n": 2**53 + 1, "x": 1e16, "tiny": 5e-324, "z": -0.0},
    {},
    {"nested": {"text": "π ≈ 3.14 — “quoted” \\ / \n 🙂", "f": [1.5, 1e-300, -2.5e-8]}},
)


def list_columns() -> set[tuple[str, str]]:
    """(table, column) of the JSON columns that hold lists."""
    found = set()
    for mapper in Base.registry.mappers:
        classes = [cls for cls in mapper.class_.__mro__ if cls is not DeclarativeBase]
        hints = {name: hint for cls in classes for name, hint in getattr(cls, "__annotations__", {}).items()}
        lists = {name for name, hint in hints.items() if str(hint).startswith("Mapped[list")}
        found |= {(mapper.local_table.name, name) for name in lists}  # type: ignore[attr-defined]
    return found


_LISTS = list_columns()


def fill(database: Database, *, n: int = 3, tables: Iterable[Table] | None = None) -> dict[str, int]:
    """``n`` rows in each table (one in those that hold one), parents first; how many, by table.

    Row 1 has null wherever null is allowed, the others have a value everywhere. Without ``tables`` the database's own
    are looked at, whatever schema it has.
    """
    counts = {}
    with database.engine.begin() as connection:
        if tables is None:
            schema = MetaData()
            schema.reflect(connection)
            tables = [table for table in schema.sorted_tables if table.name != "alembic_version"]
        for table in tables:
            rows = list(rows_of(table, 1 if table.name == "queue_controls" else n))
            connection.execute(table.insert(), rows)
            counts[table.name] = len(rows)
    return counts


def rows_of(table: Table, n: int) -> Iterator[dict[str, Any]]:
    """Rows of one table."""
    for number in range(n):
        yield {column.name: _value(column, number) for column in table.columns}


def _value(column: Column[Any], number: int) -> Any:
    target = next(iter(column.foreign_keys), None)
    if number == 1 and column.nullable:
        return None
    if target is not None:
        return _value(target.column, number)
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    table = column.table.name
    if column.primary_key and isinstance(kind, Integer):
        return 1 if table == "queue_controls" else 10 * (number + 1)
    match kind:
        case Boolean():
            return number % 2 == 0
        case BigInteger():
            return _BIG_INTS[number % len(_BIG_INTS)]
        case Integer():
            return _INTS[number % len(_INTS)] if column.unique is None else number
        case Double() | Float():
            return _FLOATS[number % len(_FLOATS)]
        case JSON():
            return [_JSON[number % 3], number] if (table, column.name) in _LISTS else _JSON[number % 3]
        case DateTime():
            # SQLite's datetimes have no zone when a table is reflected rather than declared
            moment = _NOON + timedelta(days=number, microseconds=number)
            return moment if kind.timezone or isinstance(column.type, TypeDecorator) else moment.replace(tzinfo=None)
    return f"{column.name}-{number}"


def count(database: Database) -> dict[str, int]:
    """Rows of every table that there is."""
    with database.engine.connect() as connection:
        names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
        return {name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one() for name in names}
