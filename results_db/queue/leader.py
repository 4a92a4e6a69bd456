"""One of several servers on one database turns the advance loop; the others stand by."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from results_db.engine import Database

log = logging.getLogger(__name__)

#: PostgreSQL's advisory lock of the loop; any constant that nothing else here uses
_LOCK = 0x62_69_74_6C
#: PostgreSQL ends a leader's session that has said nothing for so long: its process is frozen or its machine gone
_SILENCE_S = 120
_SET = text("SELECT set_config(:name, :value, false)")


class Leader:
    """The right to turn the loop: a session's advisory lock on PostgreSQL, a locked file beside a SQLite database.

    Both end with the process that holds them, however it ends. Not thread-safe: the loop's thread alone asks.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connection: Connection | None = None
        self._file: IO[bytes] | None = None

    def hold(self) -> bool:
        """Whether this process may turn now; takes the right if it is free."""
        return self._hold_file() if self.database.is_sqlite else self._hold_session()

    def release(self) -> None:
        """Let another server turn."""
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
            except SQLAlchemyError:
                log.debug("the right went with its session")
            _close(self._connection)
            self._connection = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _hold_file(self) -> bool:
        name = self.database.url.database
        if self._file is not None or not name or name == ":memory:":
            return True
        file = Path(f"{name}.loop").open("ab")  # noqa: SIM115 - open for as long as the right is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def _hold_session(self) -> bool:
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
            except SQLAlchemyError as error:
                log.warning("the session that held the loop is gone (%s)", type(error).__name__)
                self.release()
            else:
                return True
        connection = self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            taken = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}))
            if taken:
                for setting, value in (
                    ("idle_session_timeout", f"{_SILENCE_S}s"),
                    ("tcp_keepalives_idle", "10"),
                    ("tcp_keepalives_interval", "5"),
                    ("tcp_keepalives_count", "3"),
                ):
                    connection.execute(_SET, {"name": setting, "value": value})
        except SQLAlchemyError:
            _close(connection)
            raise
        if taken:
            self._connection = connection
        else:
            connection.close()
        return taken


def _close(connection: Connection) -> None:
    """Close the session itself, so that its lock goes: a connection in the pool would keep it."""
    connection.invalidate()
    connection.close()
