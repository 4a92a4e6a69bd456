"""Units of work: one request, one transaction. Nothing else in the server commits for a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from results_db import Database
from results_db.settings import Settings


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


# scope="function": the transaction ends before the response leaves, so no client sees a 2xx that was not committed
ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session, scope="function")]
