"""What each route asks of its caller. One table, asked before any route is: what it does not name needs ``write``."""

from __future__ import annotations

import re

from results_db.tokens import Scope
from server.kit.hosts import SAFE_METHODS

#: answered to everybody: they say that the server lives, let people in, and hold nothing but our own sources
_PUBLIC = re.compile(r"(/api/v1)?/(livez|readyz)|/login|/logout|/favicon\.ico|/assets/.*", re.DOTALL)
#: POSTs that change nothing
_READING_POSTS = re.compile(r"/api/v1/(plans|sql(/.*)?|allocations/(frontier|what-if))", re.DOTALL)
#: what stops or steers the service as a whole
_ADMINISTRATION = re.compile(r"/api/v1/(queue|workers|tokens)(/.*)?", re.DOTALL)


def needed_scope(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None = it is answered to everybody.

    A path that no route has is treated as one that has: only callers with the scope learn that it is not there.
    """
    if _PUBLIC.fullmatch(path):
        return None
    if method in SAFE_METHODS:
        return Scope.READ
    if _ADMINISTRATION.fullmatch(path):
        return Scope.ADMIN
    return Scope.READ if only_reads(method, path) else Scope.WRITE


def only_reads(method: str, path: str) -> bool:
    """Whether a request changes nothing, whatever it asks for."""
    return method in SAFE_METHODS or (method == "POST" and _READING_POSTS.fullmatch(path) is not None)
