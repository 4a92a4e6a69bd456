"""Principal: who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from starlette.requests import HTTPConnection
from starlette.types import Scope as AsgiScope

from results_db.tables import Token
from results_db.tokens import Scope

_KEY = "principal"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever is let in. ``local``: somebody on this machine, where no token is asked for."""

    kind: Literal["local", "token", "session"]
    scope: Scope
    name: str
    token_id: str | None = None
    #: of the token or of the session; None = does not expire
    expires_at: datetime | None = None
    #: when the token was used last, to the minute; None = never
    used_at: datetime | None = None

    @classmethod
    def of_token(cls, token: Token) -> Principal:
        return cls("token", Scope(token.scope), token.name, token.id, token.expires_at, token.last_used_at)

    @classmethod
    def of_session(cls, token: Token, expires_at: datetime) -> Principal:
        return cls("session", Scope(token.scope), token.name, token.id, expires_at, token.last_used_at)


LOCAL = Principal("local", Scope.ADMIN, "this machine")


def principal_of(request: HTTPConnection) -> Principal | None:
    """Who sent the request; None = nobody that is known, which only public paths answer."""
    return request.scope.get("state", {}).get(_KEY)


def set_principal(scope: AsgiScope, principal: Principal | None) -> None:
    """Remember who sent the request, for ``principal_of``."""
    scope.setdefault("state", {})[_KEY] = principal
