"""Tables, sessions, queue transitions and SQL views: the database is the truth of bitbudget."""

from __future__ import annotations

from results_db.engine import Database

__all__ = ["Database"]
