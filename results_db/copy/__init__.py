"""Copies of a whole database: from SQLite to PostgreSQL and back, to a backup file and from it."""

from __future__ import annotations

from results_db.copy.copy import CopyReport, Progress, TableReport, copy_database
from results_db.copy.errors import CannotCopy

__all__ = ["CannotCopy", "CopyReport", "Progress", "TableReport", "copy_database"]
