"""One query on SQLite in a process of its own: run as a script, standard library alone.

Reads ``{"path", "sql", "params", "reach", "views", "rows", "nbytes", "seconds"}`` from stdin. Writes lines of JSON: the
columns, each row, and the end, which is ``{"end": "rows" | "bytes" | null}`` or ``{"refused", "message"}``.

None of the fences parses the SQL:

* ``mode=ro``, and an authorizer that lets through SELECT, a list of functions, and reading; with reach "views" the
  columns that the views read, through a view. SQLite tells the authorizer the view's name, but takes a WITH of that
  name for the view: so each view stands behind a temporary one whose name nobody can guess;
* the driver refuses a second statement;
* a progress handler ends what takes too long; because one huge opcode does not pass it, so does the kernel (SIGALRM,
  not caught);
* SQLite's heap, the process's address space and the length of values are limited; temporary tables stay in memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import sys
import time
from typing import Any
from urllib.parse import quote

LONGEST_VALUE = 1_000_000
_HEAP_BYTES = 192 * 1024 * 1024
_ADDRESS_BYTES = 512 * 1024 * 1024
_OPCODES_BETWEEN_CHECKS = 2_000
#: the handler ends a query first and says so; the alarm ends what never came back to it
_ALARM_AFTER_S = 0.2

#: never readable, whatever the reach: hashes of secrets, answers to others, and what proves a lease
SECRET_TABLES = frozenset({"tokens", "page_sessions", "idempotency_keys"})
SECRET_COLUMNS = frozenset({("attempts", "lease_token")})

#: pure functions; what reaches out of the database, changes the connection or tells of the build is not among them
_FUNCTIONS_TEXT = """
abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce cos cosh count cume_dist current_date
current_time current_timestamp date datetime degrees dense_rank exp first_value floor format glob group_concat hex
ifnull iif instr json json_array json_array_length json_extract json_group_array json_group_object json_object
json_quote json_type json_valid julianday lag last_value lead length like likelihood likely ln log log10 log2 lower
ltrim max min mod nth_value ntile nullif percent_rank pi pow power printf quote radians random rank replace round
row_number rtrim sign sin sinh sqrt strftime substr substring sum tan tanh time total trim trunc typeof unicode
unixepoch unlikely upper -> ->>
"""
FUNCTIONS = frozenset(_FUNCTIONS_TEXT.split())


class NotAllowed(Exception):
    """A fence said no."""


class Fence:
    """What the authorizer lets through; while ``learning`` it notes what the views read."""

    def __init__(self) -> None:
        self.learning = True
        self.readable: set[tuple[str, str]] = set()
        self.views: frozenset[str] = frozenset()
        #: how the names begin of the views that read the tables
        self.inner = f"_{os.urandom(16).hex()}_"
        #: everything that the schema has a name for
        self.present: frozenset[str] = frozenset()
        #: whether tables may be read themselves, all columns but secret ones
        self.tables = False
        self.denied: str | None = None

    def __call__(
        self, action: int, first: str | None, second: str | None, _database: str | None, view: str | None
    ) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            # a table of which no column is read comes as the query writes it
            return self._read(str(first).lower(), str(second).lower(), view)
        if action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        name = second if action == sqlite3.SQLITE_FUNCTION else None
        self.denied = f"the function {name} is not on the list" if name else "only SELECT is allowed"
        return sqlite3.SQLITE_DENY

    def _read(self, table: str, column: str, view: str | None) -> int:
        if self.learning:
            # a table that is joined and counted alone is read without a column
            self.readable |= {(table, column), (table, "")}
            return sqlite3.SQLITE_OK
        if self._may_read(table, column, view):
            return sqlite3.SQLITE_OK
        self.denied = f"{table}.{column} is not open to queries" if column else f"{table} is not open to queries"
        return sqlite3.SQLITE_DENY

    def _may_read(self, table: str, column: str, view: str | None) -> bool:
        if table in SECRET_TABLES or (table, column) in SECRET_COLUMNS or table.startswith(("sqlite_", "pragma_")):
            return False
        if table.startswith(self.inner):
            return True
        if table not in self.present:  # the query's own WITH, counted
            return column == ""
        if self.tables:
            return True
        through = column == "" or table in self.views or (view or "").startswith(self.inner)
        return through and (table, column) in self.readable


def main() -> None:
    request = json.loads(sys.stdin.read())
    seconds = float(request["seconds"])
    # default action: the kernel ends the process, in the middle of whatever it does, be its parent alive or not
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_AFTER_S)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fence = Fence()
    end: dict[str, str | None]
    try:
        connection = sqlite3.connect(f"file:{quote(request['path'])}?mode=ro", uri=True, timeout=seconds)
        _prepare(connection, fence, request)
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES_BETWEEN_CHECKS)
        end = {"end": _send_rows(connection, request)}
    except MemoryError:
        end = {"refused": "too-large", "message": f"the query needs more than {_HEAP_BYTES >> 20} MiB of memory"}
    except NotAllowed as error:
        end = {"refused": "not-allowed", "message": str(error)}
    except (sqlite3.Error, sqlite3.Warning, OverflowError, RecursionError) as error:
        end = _refusal(error, fence)
    _write(end)
    sys.stdout.flush()


def _prepare(connection: sqlite3.Connection, fence: Fence, request: dict[str, Any]) -> None:
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit = {_HEAP_BYTES}")
    schema = connection.execute("SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    fence.present = frozenset(name.lower() for name, _, _ in schema)
    fence.views = frozenset(name for name, type_, _ in schema if type_ == "view" and name in request["views"])
    fence.tables = request["reach"] == "tables"
    if not fence.tables:
        for name, _, sql in schema:
            if name in fence.views:
                inner = f'"{fence.inner}{name}"'
                connection.execute(f"CREATE TEMP VIEW {inner} AS {sql.partition(' AS ')[2]}")
                connection.execute(f'CREATE TEMP VIEW "{name}" AS SELECT * FROM {inner}')  # noqa: S608 - our names
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(fence)
    for view in fence.views:
        fence.readable |= {(view, "")}
        connection.execute(f'SELECT * FROM "{view}" LIMIT 0')  # noqa: S608 - a name of the contract
    fence.learning = False
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 250_000),
        (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 64),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
        (sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)


def _send_rows(connection: sqlite3.Connection, request: dict[str, Any]) -> str | None:
    """Why the rows ended early, or None."""
    try:
        cursor = connection.execute(request["sql"], request["params"])
    except (sqlite3.ProgrammingError, sqlite3.Warning) as error:
        if "one statement" in str(error):
            raise NotAllowed("one statement at a time") from error
        raise
    if cursor.description is None:
        raise NotAllowed("there is nothing to run: write a SELECT")
    _write([column[0] for column in cursor.description])
    left = int(request["nbytes"])
    for number, row in enumerate(cursor):
        if number == request["rows"]:
            return "rows"
        line = _line([value.hex() if isinstance(value, bytes) else value for value in row])
        left -= len(line)
        if left < 0:
            return "bytes"
        sys.stdout.buffer.write(line)
    return None


def _refusal(error: Exception, fence: Fence) -> dict[str, str | None]:
    message = str(error)
    if message == "interrupted":
        return {"refused": "timeout", "message": "the time ran out"}
    if (
        "too big" in message
        or "too large" in message
        or "out of memory" in message
        or "too long" in message
        or "too complex" in message
    ):
        return {"refused": "too-large", "message": f"a value of the query, or the query, is too long ({message})"}
    if fence.denied is not None and not fence.learning:
        return {"refused": "not-allowed", "message": fence.denied}
    if "readonly" in message or "prohibited" in message or "not authorized" in message:
        return {"refused": "not-allowed", "message": f"only reading is allowed ({message})"}
    return {"refused": "invalid", "message": message}


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def _write(value: Any) -> None:
    sys.stdout.buffer.write(_line(value))


if __name__ == "__main__":
    main()
