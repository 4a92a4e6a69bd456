"""One query on whichever database the URL names."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cli.query.postgresql import query_postgresql
from cli.query.result import Limits, QueryRefused, Result
from cli.query.sqlite import query_sqlite


def run_query(database_url: str, sql: str, limits: Limits) -> Result:
    """Run one reading statement on the database.

    Raises:
        QueryRefused: see the message.
    """
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError) as error:
        raise QueryRefused(
            f"{re.sub(':[^:@/]*@', ':***@', database_url)!r} is no database URL",
            cure="write sqlite:///path/to/file.db or postgresql+psycopg://user@host/database",
        ) from error
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise QueryRefused("the database URL names no file", cure="write sqlite:///path/to/file.db")
            return query_sqlite(Path(url.database), sql, limits)
        case "postgresql":
            return query_postgresql(url, sql, limits)
    raise QueryRefused(
        f"no queries on {url.get_backend_name()!r}", cure="bitbudget's databases are SQLite and PostgreSQL"
    )
