"""Tables that hold secrets, hidden from a query on PostgreSQL that runs with the rights of who asks.

A WITH takes the place of each table that it names: one with the columns that hold no secret, or one that cannot be
read at all. Only a schema before the name leads past it, so that is refused. It keeps who looks around from telling
secrets by mistake, in a log or on a screen; who holds the database's URL can read them with psql.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import psycopg
from psycopg import sql as pgsql

from results_db.sql.sqlite_child import SECRET_COLUMNS, SECRET_TABLES
from results_db.sql.tokens import not_allowed, tokens_of

#: what PostgreSQL says of a table that cannot be read begins so, behind the table's name
CLOSED = "is not open to queries, it holds secrets"
_NAMES = SECRET_TABLES | {table for table, _ in SECRET_COLUMNS}


def without_secrets(connection: psycopg.Connection[Any], query: str) -> str:
    """The query, within a WITH where it names a table that holds secrets.

    Args:
        query: as ``checked_query`` gave it: its names are what they seem.

    Raises:
        QueryRefused: not-allowed: it names such a table by its schema.
    """
    tokens = list(tokens_of(query))
    named = sorted({token.name for token in tokens if token.name in _NAMES})
    if not named:
        return query
    before = {
        first.name
        for (first, dot), (_, name) in pairwise(pairwise(tokens))
        if dot.says(".") and name.name in _NAMES and first.name is not None
    }
    found = connection.execute("SELECT min(nspname) FROM pg_catalog.pg_namespace WHERE nspname = ANY(%s)", ([*before],))
    schema = found.fetchone()
    if schema is not None and schema[0] is not None:
        raise not_allowed(f"name the table without its schema {schema[0]}")
    stand_ins = [text for name in named if (text := _stand_in(connection, str(name))) is not None]
    if not stand_ins:
        return query
    return f"WITH {', '.join(stand_ins)} SELECT * FROM ({query}) AS bitbudget_query"  # noqa: S608 - the user's own query


def _stand_in(connection: psycopg.Connection[Any], table: str) -> str | None:
    """``name AS (…)``; None where there is no such table."""
    columns = connection.execute(
        """
        SELECT n.nspname, a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass(quote_ident(%s)) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        (table,),
    ).fetchall()
    if not columns:
        return None
    # PostgreSQL casts this text when it plans the query, and says what it is
    condition = "" if table not in SECRET_TABLES else f" WHERE CAST('{table} {CLOSED}' || '' AS boolean)"
    text = pgsql.SQL("{name} AS (SELECT {columns} FROM {schema}.{name}" + condition + ")").format(  # noqa: S608
        name=pgsql.Identifier(table),
        columns=pgsql.SQL(", ").join(pgsql.Identifier(c) for _, c in columns if (table, c) not in SECRET_COLUMNS),
        schema=pgsql.Identifier(columns[0][0]),
    )
    return text.as_string(connection)
