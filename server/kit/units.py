"""Units of work: one request, one transaction; a bulk request, several. Nothing else commits for a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from results_db import Database
from results_db.settings import Settings

#: a little longer than the longest pause of SQLite's busy handler
_GIVE_WAY_S = 0.11


def get_database(request: Request) -> Database:
    """The application's database."""
    database: Database = request.app.state.database
    return database


def get_settings(request: Request) -> Settings:
    """The application's settings."""
    settings: Settings = request.app.state.settings
    return settings


AppDatabase = Annotated[Database, Depends(get_database)]
AppSettings = Annotated[Settings, Depends(get_settings)]


def read_session(database: AppDatabase) -> Iterator[Session]:
    """A session that only reads; nothing in it is kept."""
    with database.read() as session:
        yield session


def write_session(request: Request, database: AppDatabase) -> Iterator[Session]:
    """A session whose transaction commits before the response leaves."""
    with database.write() as session:
        # IdempotentRoute stores the answer in the same transaction
        request.state.write_session = session
        yield session


class Units:
    """For a request that is too large for one transaction: several, one after the other, each as short as it can be.

    The answer to an Idempotency-Key is stored in the last one.
    """

    def __init__(self, request: Request, database: Database, stack: ExitStack) -> None:
        self._request = request
        self._database = database
        self._stack = stack
        self._wrote = False

    def read(self) -> AbstractContextManager[Session]:
        """A session that only reads."""
        return self._database.read()

    def write(self) -> AbstractContextManager[Session]:
        """A transaction that commits at the end of the block."""
        if self._database.is_sqlite and self._wrote:
            # who waits for SQLite's lock looks for it every 0.1 s, and would never find it free between two of ours
            time.sleep(_GIVE_WAY_S)
        self._wrote = True
        return self._database.write()

    def write_last(self) -> Session:
        """The last transaction: it commits before the response leaves."""
        session = self._stack.enter_context(self._database.write())
        self._request.state.write_session = session
        return session


def write_units(request: Request, database: AppDatabase) -> Iterator[Units]:
    """The transactions of one request."""
    with ExitStack() as stack:
        yield Units(request, database, stack)


# scope="function": the transaction ends before the response leaves, so no client sees a 2xx that was not committed
ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session, scope="function")]
WriteUnits = Annotated[Units, Depends(write_units, scope="function")]
