"""API tokens: made, found, listed and revoked in the database; the token itself is shown once and stored nowhere.

A token is 32 random bytes, so its plain SHA-256 is kept: nobody guesses 256 bits, and a slow hash, which protects
passwords that people choose, would only slow down every request. Finding a token by its hash compares nothing secret
byte by byte: how long the search takes tells about hashes, from which no token can be had.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from results_db.alone import alone
from results_db.clock import utc_now
from results_db.errors import NotFound, ResultsDbError
from results_db.ids import new_id
from results_db.tables import PageSession, Token

PREFIX = "bb_"
_SECRET_BYTES = 32
#: the prefix and so many characters more are stored readably
_HINT_CHARACTERS = 4
_NAME = re.compile(r"[\w][\w .@+-]{0,99}")
_AGE = re.compile(r"([1-9]\d{0,4})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
#: how exactly ``last_used_at`` is kept: a token in use costs one write a minute
USED_WITHIN = timedelta(minutes=1)


class Scope(StrEnum):
    """What a caller may do; each holds the ones before it."""

    READ = "read"  #: whatever changes nothing: every GET, SQL, plans
    WRITE = "write"  #: submit, cancel, retry, pause and resume jobs and studies, register models, invalidate
    ADMIN = "admin"  #: pause the queue, drain workers

    def includes(self, needed: Scope) -> bool:
        """Whether who has this scope may do what ``needed`` stands for."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class TokenRefused(ResultsDbError):
    """A token cannot be made as asked: its name, or how long it is to last."""

    code = "token-refused"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made; ``secret`` exists nowhere else."""

    row: Token
    secret: str


def create_token(session: Session, name: str, scope: Scope, *, lasts: timedelta | None = None) -> NewToken:
    """Make a token; ``lasts`` = None never expires.

    Raises:
        TokenRefused: the name is malformed, or a token that still works has it.
    """
    if not _NAME.fullmatch(name):
        raise TokenRefused(f"{name!r} is no name for a token: 1 to 100 letters, digits, spaces and . _ @ + -")
    alone(session, f"token {name}")
    if any(token.name == name for token in usable_tokens(session)):
        raise TokenRefused(f"a token named {name!r} works already: revoke it first, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = Token(
        id=new_id("tok"),
        name=name,
        token_hash=hash_secret(secret),
        scope=scope.value,
        hint=secret[: len(PREFIX) + _HINT_CHARACTERS],
        expires_at=None if lasts is None else utc_now() + lasts,
    )
    session.add(row)
    session.flush()
    return NewToken(row, secret)


def find_token(session: Session, secret: str) -> Token | None:
    """The token that this is, if it is one and still works."""
    row = session.scalar(select(Token).where(Token.token_hash == hash_secret(secret)))
    return row if row is not None and is_usable(row) else None


def is_usable(token: Token) -> bool:
    """Whether it is neither revoked nor expired."""
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > utc_now())


def list_tokens(session: Session) -> Sequence[Token]:
    """Every token there ever was, newest first."""
    return session.scalars(select(Token).order_by(Token.id.desc())).all()


def usable_tokens(session: Session) -> list[Token]:
    """Those that still work, newest first."""
    return [token for token in list_tokens(session) if is_usable(token)]


def revoke_token(session: Session, name_or_id: str) -> Token:
    """Make a token useless from now on, and end the page sessions that were opened with it.

    Raises:
        NotFound: no token that still works has this name or id.
    """
    for token in usable_tokens(session):
        if name_or_id in (token.id, token.name):
            token.revoked_at = utc_now()
            session.execute(delete(PageSession).where(PageSession.token_id == token.id))
            return token
    raise NotFound("token that works", name_or_id)


def note_use(session: Session, token_id: str) -> None:
    """Keep when the token was used last, to the minute."""
    now = utc_now()
    long_ago = or_(Token.last_used_at.is_(None), Token.last_used_at < now - USED_WITHIN)
    session.execute(update(Token).where(Token.id == token_id, long_ago).values(last_used_at=now))


def parse_age(text: str) -> timedelta:
    """``12h``, ``30d`` or ``8w`` as a span of time.

    Raises:
        TokenRefused: it is none of these.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise TokenRefused(f"{text!r} is no span of time: write hours, days or weeks as 12h, 30d or 8w")
    return int(match[1]) * _UNITS[match[2]]


def hash_secret(secret: str) -> str:
    """What is stored of a token or of a cookie: SHA-256, 64 hex digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
