"""The worker's way to the database."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from results_db import Database
from results_db.settings import Settings


def open_database(settings: Settings) -> Database:
    """A database whose transactions end with the lease: a worker that was frozen while it wrote keeps no row locked."""
    return Database(settings.database_url, idle_limit_s=settings.lease_s)


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, and may a moment later; it has refused what it was told otherwise.

    A connection is gone too where PostgreSQL ended a transaction that stood still for a lease: this process was frozen.
    """
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
