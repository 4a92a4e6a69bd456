"""Ids that a database counts itself go on after those that came along, and after those that were given and removed."""

from __future__ import annotations

from sqlalchemy import Connection, Table, func, inspect, select, text


def last_id(connection: Connection, table: Table) -> int | None:
    """The largest id that was ever given in ``table``, as far as the database knows; None where it counts none."""
    column = table.autoincrement_column
    if column is None:
        return None
    largest = connection.scalar(select(func.max(column))) or 0
    if connection.dialect.name == "postgresql":
        sequence = _sequence(connection, table)
        if sequence is None:
            return None
        # 0 before the first: the sequence then shows its start without having given it
        given = connection.scalar(text(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"))  # noqa: S608
        return max(largest, given or 0)
    return max(largest, _sqlite_given(connection, table))


def go_on_after(connection: Connection, table: Table, last: int | None) -> None:
    """Let the next id be above ``last``."""
    if not last:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT setval(:sequence, :last)"), {"sequence": _sequence(connection, table), "last": last}
        )
    elif _sqlite_counts(connection, table):
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), {"table": table.name})
        connection.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :last)"), {"table": table.name, "last": last}
        )


def _sequence(connection: Connection, table: Table) -> str | None:
    column = table.autoincrement_column
    assert column is not None
    names = {"table": table.name, "column": column.name}
    return connection.scalar(text("SELECT pg_get_serial_sequence(:table, :column)"), names)


def _sqlite_given(connection: Connection, table: Table) -> int:
    if not inspect(connection).has_table("sqlite_sequence"):
        return 0
    query = text("SELECT max(seq) FROM sqlite_sequence WHERE name = :table")
    return connection.scalar(query, {"table": table.name}) or 0


def _sqlite_counts(connection: Connection, table: Table) -> bool:
    """Whether the table was made with AUTOINCREMENT; otherwise SQLite takes one more than the largest id there is."""
    made = connection.scalar(
        text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :table"), {"table": table.name}
    )
    return "AUTOINCREMENT" in (made or "").upper()
