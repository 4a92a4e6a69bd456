"""The worker's way to the database."""

from __future__ import annotations

from results_db import Database
from results_db.settings import Settings


def open_database(settings: Settings) -> Database:
    """A database whose transactions end with the lease: a worker that was frozen while it wrote keeps no row locked."""
    return Database(settings.database_url, idle_limit_s=settings.lease_s)
