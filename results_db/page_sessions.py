"""Page sessions: a browser trades a token for a cookie, which ends by itself, with its token, or when asked to."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.tables import PageSession, Token
from results_db.tokens import hash_secret, is_usable


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that was just opened; ``secret`` is the cookie's value and exists nowhere else."""

    row: PageSession
    secret: str


def open_session(session: Session, token: Token, lasts: timedelta) -> NewSession:
    """Open a session for a token that works; it ends with the token at the latest. Ended ones are removed."""
    now = utc_now()
    session.execute(delete(PageSession).where(PageSession.expires_at <= now))
    secret = secrets.token_urlsafe(32)
    ends: datetime = now + lasts if token.expires_at is None else min(now + lasts, token.expires_at)
    row = PageSession(id=new_id("ses"), token_id=token.id, secret_hash=hash_secret(secret), expires_at=ends)
    session.add(row)
    session.flush()
    return NewSession(row, secret)


def find_session(session: Session, secret: str) -> tuple[PageSession, Token] | None:
    """The session that a cookie's value opens and its token, while both last."""
    query = select(PageSession, Token).join(Token, Token.id == PageSession.token_id)
    found = session.execute(query.where(PageSession.secret_hash == hash_secret(secret))).one_or_none()
    if found is None:
        return None
    row, token = found
    return (row, token) if row.expires_at > utc_now() and is_usable(token) else None


def close_session(session: Session, secret: str) -> None:
    """End the session of a cookie's value; there need not be one."""
    session.execute(delete(PageSession).where(PageSession.secret_hash == hash_secret(secret)))
