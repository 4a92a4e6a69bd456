"""Database: one URL, sessions that read and sessions that write."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session, sessionmaker

_BEGIN = "bitbudget_sqlite_begin"


class Database:
    """SQLite or PostgreSQL behind one URL.

    Make it after a fork, never before: connections must not cross processes.

    SQLite runs in WAL mode and writers open with BEGIN IMMEDIATE: a read that turns into a write inside BEGIN
    DEFERRED fails with "database is locked" whatever the timeout.

    Args:
        idle_limit_s: PostgreSQL ends a transaction of ours that has said nothing for so long, and frees its locks: the
            process was frozen in the middle of it. (SQLite's locks go with the process alone.)
    """

    def __init__(self, url: str, *, echo: bool = False, idle_limit_s: float = 60.0) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"echo": echo, "pool_pre_ping": not self.is_sqlite}
        self.engine: Engine = create_engine(self.url, **options)
        if self.is_sqlite:
            _prepare_sqlite(self.engine)
        else:
            _prepare_postgresql(self.engine, idle_limit_s)
        writer = self.engine.execution_options(**{_BEGIN: "IMMEDIATE"}) if self.is_sqlite else self.engine
        reader = self.engine if self.is_sqlite else self.engine.execution_options(postgresql_readonly=True)
        self._write = sessionmaker(writer, expire_on_commit=False)
        self._read = sessionmaker(reader, expire_on_commit=False, autoflush=False)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, or rolls back and re-raises."""
        with self._write.begin() as session:
            yield session

    @contextmanager
    def read(self, *, computes: bool = False) -> Iterator[Session]:
        """A transaction that never takes a write lock; nothing in it is kept.

        ``computes``: it may say nothing for as long as it likes. A long computation is no frozen process, and a reader
        keeps nobody from writing.
        """
        with self._read() as session:
            if computes and not self.is_sqlite:
                session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield session

    def dispose(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "do_connect")
    def _make_private(_dialect: Any, _record: Any, _args: Any, _parameters: Any) -> None:
        path = engine.url.database
        if path and path != ":memory:" and not path.startswith("file:"):
            _create_private(path)

    @event.listens_for(engine, "connect")
    def _connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # we emit BEGIN ourselves
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get(_BEGIN, "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")


def _create_private(path: str) -> None:
    """Make a new database its owner's alone: it holds hashes of tokens. Its log is opened with the same rights.

    A file that is there is never opened: POSIX drops all of a process's locks on a file when the process closes any
    descriptor of it, and SQLite's locks are such. So a new one is made elsewhere and linked when it is closed.
    """
    if os.path.lexists(path):
        return
    made = f"{path}.{secrets.token_hex(4)}.new"
    with suppress(OSError):  # SQLite says it better
        os.close(os.open(made, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.link(made, path)
        finally:
            os.unlink(made)


def _prepare_postgresql(engine: Engine, idle_limit_s: float) -> None:
    @event.listens_for(engine, "connect")
    def _connect(dbapi_connection: Any, _record: Any) -> None:
        with dbapi_connection.cursor() as cursor:
            limit = f"{max(1, round(1000 * idle_limit_s))}ms"
            cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", (limit,))
        dbapi_connection.commit()
