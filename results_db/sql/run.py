"""One query on whichever database the URL names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from results_db.sql.contract import CONTRACT
from results_db.sql.postgresql import query_postgresql
from results_db.sql.result import Limits, QueryRefused, Reach, Refusal, Result
from results_db.sql.sqlite import query_sqlite
from results_db.sql.stop import Stop

_LONGEST_SQL = 100_000


def run_query(
    database_url: str | URL,
    sql: str,
    limits: Limits,
    *,
    params: Mapping[str, Any] | None = None,
    reach: Reach = Reach.VIEWS,
    stop: Stop | None = None,
) -> Result:
    """Run one SELECT, read-only.

    Args:
        params: values of ``:name`` in the text: text, numbers, true, false or null.
        stop: ends the query when another thread asks for it.

    Raises:
        QueryRefused: it is not allowed, not valid, too long or too large; the message says which.
    """
    url = _url(database_url)
    if len(sql) > _LONGEST_SQL:
        raise QueryRefused(Refusal.TOO_LARGE, f"the query is longer than {_LONGEST_SQL:,} characters")
    if "\0" in sql or re.search(r"[\ud800-\udfff]", sql):
        raise QueryRefused(Refusal.INVALID, "the query holds a NUL or a lone surrogate, which are no characters")
    values = _checked(params or {})
    stop = stop or Stop()
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise QueryRefused(
                    Refusal.UNAVAILABLE, "the database URL names no file", cure="write sqlite:///path/to/file.db"
                )
            return query_sqlite(Path(url.database), sql, values, limits, reach, tuple(CONTRACT), stop)
        case "postgresql":
            return query_postgresql(url, sql, values, limits, reach, stop)
    raise QueryRefused(
        Refusal.UNAVAILABLE,
        f"no queries on {url.get_backend_name()!r}",
        cure="bitbudget's databases are SQLite and PostgreSQL",
    )


def _url(given: str | URL) -> URL:
    try:
        return make_url(given)
    except (ArgumentError, ValueError) as error:
        raise QueryRefused(
            Refusal.UNAVAILABLE,
            f"{re.sub(':[^:@/]*@', ':***@', str(given))!r} is no database URL",
            cure="write sqlite:///path/to/file.db or postgresql+psycopg://user@host/database",
        ) from error


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in params.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise QueryRefused(Refusal.INVALID, f"{name!r} is no name of a parameter")
        if not isinstance(value, str | int | float | bool | None):
            raise QueryRefused(Refusal.INVALID, f"parameter {name}: give a text, a number, true, false or null")
        if isinstance(value, str) and ("\0" in value or re.search(r"[\ud800-\udfff]", value)):
            raise QueryRefused(Refusal.INVALID, f"parameter {name} holds a NUL or a lone surrogate")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise QueryRefused(Refusal.INVALID, f"parameter {name} is beyond 64 bits")
    return dict(params)
