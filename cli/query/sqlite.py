"""Read-only queries on SQLite: four fences, none of which parses the SQL.

The file is opened with ``mode=ro``; an authorizer lets nothing through but SELECT, reading columns, and functions; the
driver refuses a second statement; a progress handler ends what takes too long. One huge opcode (``zeroblob(1e9)``) does
not pass the progress handler, so the length of any value is limited as well.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

from cli.query.result import Limits, QueryRefused, Result

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
#: reach out of the database, whatever else the build offers
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"})
_LONGEST_VALUE = 1_000_000
_OPCODES_BETWEEN_CHECKS = 10_000


def query_sqlite(path: Path, sql: str, limits: Limits) -> Result:
    """Run one SELECT.

    Raises:
        QueryRefused: the file is missing, the statement is not allowed or not valid, or the time ran out.
    """
    if not path.is_file():
        raise QueryRefused(
            f"there is no database at {path}",
            cure="start the stack once with `bitbudget up`, or name one: --database URL",
        )
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)
    try:
        _fence(connection, limits)
        return _fetch(connection, sql, limits)
    except sqlite3.Error as error:
        raise _refusal(error, limits) from error
    finally:
        connection.close()


def _fence(connection: sqlite3.Connection, limits: Limits) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(_authorize)
    deadline = time.monotonic() + limits.seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES_BETWEEN_CHECKS)


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _view: str | None) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _fetch(connection: sqlite3.Connection, sql: str, limits: Limits) -> Result:
    try:
        cursor = connection.execute(sql)
    except (sqlite3.ProgrammingError, sqlite3.Warning) as error:  # "You can only execute one statement at a time."
        raise QueryRefused("one statement at a time", cure="send each query on its own") from error
    if cursor.description is None:
        raise QueryRefused("nothing to run", cure="write a SELECT")
    rows = cursor.fetchmany(limits.rows + 1)
    columns = tuple(column[0] for column in cursor.description)
    return Result(columns, rows[: limits.rows], len(rows) > limits.rows)


def _refusal(error: sqlite3.Error, limits: Limits) -> QueryRefused:
    message = str(error)
    if message == "interrupted":
        return QueryRefused(
            f"the query took longer than {limits.seconds:g} s", cure="ask for less, or give it time with --seconds"
        )
    if "not authorized" in message or "prohibited" in message or "authorization denied" in message:
        return QueryRefused(f"only reading is allowed ({message})", cure="write a SELECT; changes go through the API")
    if "too big" in message:
        return QueryRefused(f"a value of the query is longer than {_LONGEST_VALUE:,} bytes")
    return QueryRefused(f"the query is not valid: {message}", cure="list views with `bitbudget sql --views`")
