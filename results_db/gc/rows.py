"""Rows whose time is over: answers kept for repeated requests, and browsers' sessions. History is never removed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select

from results_db.clock import utc_now
from results_db.engine import Database
from results_db.gc.item import Item
from results_db.tables import IdempotencyKey, PageSession

#: days for which the rows stay. They answer a POST that is sent again for their first 24 hours
#: (server.kit.idempotency): a clock that is off makes nobody remove one which still answers
KEEP_KEYS_DAYS = 7.0


def expired_rows(database: Database) -> Iterator[Item]:
    """Idempotency keys older than that, sessions that have ended."""
    now = utc_now()
    old = IdempotencyKey.created_at < now - timedelta(days=KEEP_KEYS_DAYS)
    yield from _rows(database, "idempotency keys", IdempotencyKey, old, f"older than {KEEP_KEYS_DAYS:g} days")
    yield from _rows(database, "page sessions", PageSession, PageSession.expires_at < now, "expired")


def _rows(
    database: Database, kind: str, table: type[Any], condition: ColumnElement[bool], reason: str
) -> Iterator[Item]:
    with database.read() as session:
        n = session.scalar(select(func.count()).select_from(table).where(condition)) or 0
    if n:
        yield Item(kind, f"{n} rows", 0, reason, partial(_remove, database, table, condition))


def _remove(database: Database, table: type[Any], condition: ColumnElement[bool]) -> bool:
    with database.write() as session:
        session.execute(delete(table).where(condition).execution_options(synchronize_session=False))
    return True
