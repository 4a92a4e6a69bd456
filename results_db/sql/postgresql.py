"""Queries on PostgreSQL: checked names, a role that can only read the views, a read-only transaction, and a clock."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql as pgsql
from sqlalchemy import URL

from results_db.cells import plain
from results_db.sql.contract import CONTRACT
from results_db.sql.hidden import CLOSED, without_secrets
from results_db.sql.names import FLOATING, checked_query, names_of_fields
from results_db.sql.reader import CURE, READER, SCHEMA, STANDS
from results_db.sql.result import LIST_VIEWS, Limits, QueryRefused, Reach, Refusal, Result
from results_db.sql.stop import Stop

#: PostgreSQL ends a query by its own clock; ours comes after it, and so long after ours the connection goes
_GRACE_S = 0.2
_CUT_AFTER_S = 0.2
_CONNECT_S = 10
#: advisory locks, of which each query holds one until its backend is done: PostgreSQL cannot interrupt all that it
#: does, and a query that nobody waits for any more still counts here
_SLOTS = (0x62_69_74_73_01, 0x62_69_74_73_02)
_LONGEST_NUMBER = 1_000
_COLUMNS = frozenset(column.name for view in CONTRACT.values() for column in view.columns)
_NAMES = {own: name for name, own in FLOATING.items()} | {"dlog10": "log"}

_NOT_ALLOWED = frozenset({"25006", "42501", "0A000", "42P11", "34000", "42809", "2F003"})
_TOO_LARGE = frozenset({"54000", "54001", "54011", "54023", "53200", "53400", "22P05"})
_TIMEOUT = frozenset({"57014", "55P03", "25P03", "40P01"})


def query_postgresql(
    url: URL, query: str, params: Mapping[str, Any], limits: Limits, reach: Reach, stop: Stop
) -> Result:
    """Run one SELECT.

    Raises:
        QueryRefused: see the message.
    """
    checked = checked_query(query, params)
    fields = names_of_fields(query) - _COLUMNS
    start = time.monotonic()
    with _connection(url) as connection:
        clock = _Clock(connection, limits.seconds + _GRACE_S, stop)
        try:
            with clock.running():
                _fence(connection, limits)
                _refuse_functions(connection, fields)
                ask = _fetch if reach is Reach.TABLES else _ask_reader
                columns, rows, cut = ask(connection, checked, limits)
        except psycopg.Error as error:
            raise _refusal(error, limits, stop, rang=clock.rang) from error
    return Result(columns, rows, cut, time.monotonic() - start)


@contextmanager
def _connection(url: URL) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection of its own; whatever the query did is rolled back and goes with it."""
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        connection = psycopg.connect(dsn, connect_timeout=_CONNECT_S)
    except psycopg.Error as error:
        raise QueryRefused(Refusal.UNAVAILABLE, f"the database does not answer: {_first_line(error)}") from error
    try:
        connection.read_only = True
        connection.prepare_threshold = None
        yield connection
    finally:
        with suppress(psycopg.Error):  # the clock ended the connection: then the server rolls back by itself
            connection.rollback()  # now, so that what it held is free when this returns
        connection.close()


class _Clock:
    """Ends the connection when the time ran out and PostgreSQL did not see to it, or when nobody waits any more."""

    def __init__(self, connection: psycopg.Connection[Any], seconds: float, stop: Stop) -> None:
        self._connection = connection
        self._descriptor = connection.fileno()
        self._stop = stop
        self._over = threading.Event()
        #: whoever cuts the line holds it, so that its descriptor is not somebody else's by then
        self._cutting = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        #: whether it ended the query
        self.rang = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self._timer.start()
        try:
            # whoever asks to stop does not wait for the server
            with self._stop.ends_by(lambda: threading.Thread(target=self._end, daemon=True).start()):
                yield
        finally:
            with self._cutting:
                self._over.set()
            self._timer.cancel()

    def _end(self) -> None:
        if self._over.is_set():
            return
        self.rang = True
        with suppress(psycopg.Error):  # the server is away: then there is nothing to cancel
            self._connection.cancel_safe(timeout=0.5)
        self._over.wait(_CUT_AFTER_S)
        with self._cutting:
            if not self._over.is_set():
                with suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as line:
                    line.shutdown(socket.SHUT_RDWR)


def _fence(connection: psycopg.Connection[Any], limits: Limits) -> None:
    milliseconds = max(1, int(limits.seconds * 1000))
    settings = {
        "statement_timeout": f"{milliseconds}ms",
        "lock_timeout": f"{milliseconds}ms",
        "idle_in_transaction_session_timeout": f"{milliseconds + 10_000}ms",
        "work_mem": "16MB",
        "max_parallel_workers_per_gather": "0",
        "jit": "off",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "iso_8601",
        "bytea_output": "hex",
        "extra_float_digits": "1",
    }
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, true)", (name, value))
    # a setting of superusers, and of those whom one granted it (PostgreSQL 15 and later)
    with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute("SELECT set_config('temp_file_limit', '256MB', true)")


def _refuse_functions(connection: psycopg.Connection[Any], fields: Collection[str]) -> None:
    """A name behind a dot may be a function's, which PostgreSQL then calls."""
    found = connection.execute("SELECT min(proname) FROM pg_catalog.pg_proc WHERE proname = ANY(%s)", (list(fields),))
    row = found.fetchone()
    if row is not None and row[0] is not None:
        raise QueryRefused(
            Refusal.NOT_ALLOWED,
            f".{row[0]} may call a function that is not on the list",
            cure="give a column of your own another name",
        )


def _ask_reader(
    connection: psycopg.Connection[Any], query: str, limits: Limits
) -> tuple[tuple[str, ...], list[list[Any]], str | None]:
    if not _stands(connection):
        raise QueryRefused(
            Refusal.UNAVAILABLE, f"this database has no role {READER} that can only read the views", cure=CURE
        )
    if not any(_takes(connection, slot) for slot in _SLOTS):
        raise QueryRefused(Refusal.BUSY, f"{len(_SLOTS)} queries run on the database, which is as many as may")
    columns = _columns(connection, query)
    answer = connection.execute(
        pgsql.SQL("SELECT * FROM {}.run(%s, %s, %s)").format(pgsql.Identifier(SCHEMA)),
        (query, limits.rows, limits.nbytes),
    )
    rows: list[list[Any]] = []
    cut: str | None = None
    for (line,) in answer:
        # pairs, not an object: two columns may have one name
        pairs = json.loads(line, object_pairs_hook=_Pairs, parse_int=_integer)
        if isinstance(pairs, str):
            cut = pairs
        else:
            rows.append([_value(value) for _, value in pairs])
    return columns, rows, cut


def _stands(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(pgsql.SQL(STANDS)).fetchone()
    return row is not None and bool(row[0])


def _takes(connection: psycopg.Connection[Any], slot: int) -> bool:
    row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (slot,)).fetchone()
    return row is not None and bool(row[0])


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise QueryRefused(
            Refusal.TOO_LARGE, f"a number has more than {_LONGEST_NUMBER:,} digits", cure="round it, or ask for a text"
        )
    return int(digits)


class _Pairs(list[Any]):
    """An object of JSON in the order of its members."""


def _value(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {name: _value(item) for name, item in value}
    return [_value(item) for item in value] if isinstance(value, list) else plain(value)


def _columns(connection: psycopg.Connection[Any], query: str) -> tuple[str, ...]:
    """Names of the columns, as PostgreSQL understands the query without running it."""
    connection.execute(pgsql.SQL("SET LOCAL ROLE {}").format(pgsql.Identifier(READER)))
    raw = connection.pgconn
    for answer in (raw.prepare(b"", query.encode()), raw.describe_prepared(b"")):
        if answer.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(answer)
    names = tuple(_NAMES.get(name, name) for name in ((answer.fname(i) or b"").decode() for i in range(answer.nfields)))
    connection.execute("SET LOCAL ROLE NONE")
    if not names:
        raise QueryRefused(Refusal.NOT_ALLOWED, "the query brings no columns", cure="write a SELECT")
    return names


def _fetch(
    connection: psycopg.Connection[Any], query: str, limits: Limits
) -> tuple[tuple[str, ...], list[list[Any]], str | None]:
    """With the rights of who asks, but no secrets. A cursor takes a single SELECT and hands over what is fetched."""
    rows: list[list[Any]] = []
    nbytes = 0
    with connection.cursor(name="bitbudget_sql") as cursor:
        # the text is the user's own query: that is the point
        cursor.execute(pgsql.SQL(without_secrets(connection, query)))
        columns = tuple(column.name for column in cursor.description or ())
        while len(rows) <= limits.rows and (batch := cursor.fetchmany(min(1000, limits.rows + 1 - len(rows)))):
            for row in batch:
                values = [plain(value) for value in row]
                nbytes += len(json.dumps(values))
                if nbytes > limits.nbytes:
                    return columns, rows, "bytes"
                rows.append(values)
    return columns, rows[: limits.rows], "rows" if len(rows) > limits.rows else None


def _refusal(error: psycopg.Error, limits: Limits, stop: Stop, *, rang: bool) -> QueryRefused:
    state = error.sqlstate or ""
    if stop.requested:
        return QueryRefused(Refusal.STOPPED, "the query was stopped")
    if state in _TIMEOUT or rang:
        return QueryRefused(Refusal.TIMEOUT, f"the query took longer than {limits.seconds:g} s", cure="ask for less")
    if state in _NOT_ALLOWED:
        return QueryRefused(
            Refusal.NOT_ALLOWED,
            f"only reading the views is allowed ({_first_line(error)})",
            cure="write one SELECT on the views; changes go through the API",
        )
    if CLOSED in str(error):
        return QueryRefused(Refusal.NOT_ALLOWED, f"a table of the query {CLOSED}", cure=LIST_VIEWS)
    if state in _TOO_LARGE or "memory alloc" in str(error):
        return QueryRefused(Refusal.TOO_LARGE, f"the query needs too much: {_first_line(error)}", cure="ask for less")
    if not state:
        return QueryRefused(Refusal.UNAVAILABLE, f"the connection broke: {_first_line(error)}")
    return QueryRefused(
        Refusal.INVALID,
        f"the query is not valid: {_first_line(error)}",
        cure=LIST_VIEWS,
    )


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
