"""One transaction at a time for what bears a name."""

from __future__ import annotations

import hashlib

from sqlalchemy import text
from sqlalchemy.orm import Session


def alone(session: Session, name: str) -> None:
    """Wait until no other writing transaction is alone with this name; from then on this one is, until it ends.

    For "look whether it is there, else make it" where no unique column says that it is the same thing. On SQLite every
    writing transaction is alone anyway. On PostgreSQL it is an advisory lock, and what the other one committed is seen
    by the next statement: take it before looking.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
