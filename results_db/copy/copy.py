"""Copy every row of a database into an empty one, and check that both hold the same.

The target's rows come in one transaction: a copy that is killed leaves an empty target, and is simply begun again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, select, text

import results_db.tables  # noqa: F401 - completes the metadata
from results_db.base import Base
from results_db.copy.content import ContentHash
from results_db.copy.errors import CannotCopy
from results_db.copy.numbering import go_on_after, last_id
from results_db.copy.storable import checks_for, mended
from results_db.engine import Database
from results_db.migrate import head_revision, present_revision, upgrade

#: rows read, checked and written at once
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is. Rows are counted twice: when they are copied, and when the copy is read again and compared."""

    table: str
    #: "copy" or "check"
    step: str
    done: int
    total: int
    seconds: float

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left at the present pace; None before the first row."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table, as both databases hold it."""

    name: str
    n_rows: int
    #: of its rows' values; see results_db.copy.content
    content_hash: str
    #: values that were replaced because the target cannot hold them
    n_mended: int


@dataclass(frozen=True, slots=True)
class CopyReport:
    """A copy that is done and checked."""

    revision: str
    tables: tuple[TableReport, ...]
    seconds: float

    @property
    def n_rows(self) -> int:
        return sum(table.n_rows for table in self.tables)


def copy_database(
    source: Database,
    target: Database,
    *,
    hold: bool,
    mend: bool = False,
    say: Callable[[Progress], None] = lambda progress: None,
) -> CopyReport:
    """Bring ``target`` to the newest schema and fill it with the rows of ``source``, ids and all.

    Args:
        hold: keep everybody else from writing to the source meanwhile (a move). Otherwise the copy shows one moment of
            a database that goes on (a backup).
        mend: replace what the target cannot hold (see ``storable.mended``) instead of refusing.

    Raises:
        CannotCopy: the source has another schema, the target is not empty, a value does not fit, or what was written is
            not what was read. The target then is empty as before.
    """
    began = time.monotonic()
    if same_database(source, target):
        raise CannotCopy("source and target are the same database", "name another target")
    head = head_revision()
    present = present_revision(source)
    if present != head:
        raise CannotCopy(
            f"the source has schema {present}, this release copies {head}",
            "upgrade the source first: bitbudget db upgrade --database URL",
        )
    upgrade(target)
    tables = Base.metadata.sorted_tables
    with _reading(source, tables, hold=hold) as reader, _writing(target, tables) as writer:
        _require_empty(writer, tables)
        counts = {table.name: reader.scalar(select(func.count()).select_from(table)) or 0 for table in tables}
        meter = _Meter(2 * sum(counts.values()), began, say)
        copied = [_copy_table(reader, writer, table, target.is_sqlite, mend, meter) for table in tables]
        for table, report in zip(tables, copied, strict=True):
            _compare(writer, table, report, meter)
            go_on_after(writer, table, last_id(reader, table))
    return CopyReport(head, tuple(copied), time.monotonic() - began)


def require_empty(target: Database) -> None:
    """
    Raises:
        CannotCopy: a table has rows.
    """
    with target.engine.connect() as connection:
        _require_empty(connection, Base.metadata.sorted_tables)


def same_database(one: Database, other: Database) -> bool:
    """Whether both URLs lead to one place, as far as they tell."""
    if one.is_sqlite and other.is_sqlite:
        return Path(one.url.database or "").resolve() == Path(other.url.database or "").resolve()
    return one.url.set(username=None, password=None) == other.url.set(username=None, password=None)


@contextmanager
def _reading(source: Database, tables: Sequence[Table], *, hold: bool) -> Iterator[Connection]:
    """One moment of the source."""
    with source.engine.connect() as connection:
        if source.is_sqlite:
            connection = connection.execution_options(bitbudget_sqlite_begin="IMMEDIATE" if hold else "DEFERRED")
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if not source.is_sqlite:
                _no_idle_limit(connection)
                if hold:
                    _lock(connection, tables, "SHARE")
            yield connection


@contextmanager
def _writing(target: Database, tables: Sequence[Table]) -> Iterator[Connection]:
    """The target, with nobody else in it."""
    with target.engine.connect() as connection:
        if target.is_sqlite:
            connection = connection.execution_options(bitbudget_sqlite_begin="IMMEDIATE")
        with connection.begin():
            if not target.is_sqlite:
                _no_idle_limit(connection)
                _lock(connection, tables, "EXCLUSIVE")
            yield connection


def _no_idle_limit(connection: Connection) -> None:
    """One side waits while the other works: that is no frozen process."""
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _lock(connection: Connection, tables: Sequence[Table], mode: str) -> None:
    names = ", ".join(connection.dialect.identifier_preparer.format_table(table) for table in tables)
    connection.execute(text(f"LOCK TABLE {names} IN {mode} MODE"))


def _require_empty(connection: Connection, tables: Sequence[Table]) -> None:
    for table in tables:
        if connection.execute(select(1).select_from(table).limit(1)).first() is not None:
            raise CannotCopy(
                f"the target is not empty: its table {table.name} has rows",
                "name a database that has never been used, or drop this one and create it anew",
            )


def _copy_table(
    reader: Connection, writer: Connection, table: Table, to_sqlite: bool, mend: bool, meter: _Meter
) -> TableReport:
    columns = list(table.columns)
    checks = checks_for(columns, to_sqlite=to_sqlite)
    keys = [column.name for column in columns]
    content, n_mended = ContentHash(), 0
    for rows in _batches(reader, table):
        kept = []
        for row in rows:
            values = list(row)
            for place, check in enumerate(checks):
                trouble = None if check is None else check(values[place])
                if trouble is None:
                    continue
                better = mended(values[place])
                helps = better != values[place] and (better is not None or bool(columns[place].nullable))
                if not (mend and helps):
                    raise _unstorable(table, keys[place], row, trouble, mendable=helps)
                values[place] = better
                n_mended += 1
            kept.append(values)
        content.add(kept)
        writer.execute(table.insert(), [dict(zip(keys, values, strict=True)) for values in kept])
        meter.advance(table.name, "copy", len(kept))
    return TableReport(table.name, content.n_rows, content.hex, n_mended)


def _compare(writer: Connection, table: Table, report: TableReport, meter: _Meter) -> None:
    found = ContentHash()
    for rows in _batches(writer, table):
        found.add(rows)
        meter.advance(table.name, "check", len(rows))
    if (found.n_rows, found.hex) != (report.n_rows, report.content_hash):
        raise CannotCopy(
            f"the table {table.name} did not arrive as it was sent: {report.n_rows} rows of content "
            f"{report.content_hash[:12]} went out, {found.n_rows} of {found.hex[:12]} came in. Nothing was kept",
            "begin again; if it happens twice, it is an error of this command: report it with both database versions",
        )


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    yield from connection.execute(select(table).execution_options(yield_per=_BATCH)).partitions()


def _unstorable(table: Table, column: str, row: Any, trouble: str, *, mendable: bool) -> CannotCopy:
    key = ", ".join(f"{part.name} = {row[list(table.columns).index(part)]!r}" for part in table.primary_key)
    cure = "correct this value at its source"
    if mendable:
        cure = "copy with --mend: NaN and infinities in JSON become null, characters that cannot be stored become �"
    return CannotCopy(f"{table.name}.{column} of the row {key} holds {trouble}", cure)


class _Meter:
    def __init__(self, total: int, began: float, say: Callable[[Progress], None]) -> None:
        self.total, self.began, self.say = total, began, say
        self.done = 0

    def advance(self, table: str, step: str, n: int) -> None:
        self.done += n
        self.say(Progress(table, step, self.done, self.total, time.monotonic() - self.began))
