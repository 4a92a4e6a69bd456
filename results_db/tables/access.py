"""Who may call, and which POST was already answered."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class IdempotencyKey(CreatedAt, Base):
    """The answer to a POST that carried an Idempotency-Key: sent again, it is answered from here."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (UniqueConstraint("key", "path"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    path: Mapped[str]
    request_hash: Mapped[str]
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    response: Mapped[dict[str, Any] | None]


class Token(CreatedAt, Base):
    """An API token, stored as a hash."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)
    #: "read", "write" or "admin"
    scope: Mapped[str]
    revoked_at: Mapped[datetime | None]
    #: the first characters, to tell tokens apart in a list
    hint: Mapped[str | None]
    #: null = does not expire
    expires_at: Mapped[datetime | None]
    #: of the last request that it let in, to the minute
    last_used_at: Mapped[datetime | None]


class PageSession(CreatedAt, Base):
    """A browser that traded a token for a cookie; the cookie's secret is stored as a hash."""

    __tablename__ = "page_sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    secret_hash: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
