"""Read-only queries on PostgreSQL: a read-only transaction, a cursor, and timeouts kept by the server.

A server-side cursor takes one SELECT or VALUES and nothing else, and hands over only the rows that are asked for.
"""

from __future__ import annotations

import psycopg
from psycopg import sql as pgsql
from sqlalchemy import URL

from cli.query.result import Limits, QueryRefused, Result


def query_postgresql(url: URL, query: str, limits: Limits) -> Result:
    """Run one SELECT.

    Raises:
        QueryRefused: no connection, the statement is not allowed or not valid, or the time ran out.
    """
    milliseconds = max(1, int(limits.seconds * 1000))
    options = (
        "-c default_transaction_read_only=on "
        f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} "
        f"-c idle_in_transaction_session_timeout={milliseconds + 10_000}"
    )
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(dsn, options=options, connect_timeout=10) as connection:
            connection.read_only = True
            return _fetch(connection, query, limits)
    except psycopg.errors.QueryCanceled as error:
        raise QueryRefused(
            f"the query took longer than {limits.seconds:g} s", cure="ask for less, or give it time with --seconds"
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise QueryRefused(
            f"only reading is allowed ({_first_line(error)})", cure="write a SELECT; changes go through the API"
        ) from error
    except psycopg.OperationalError as error:
        raise QueryRefused(f"the database does not answer: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise QueryRefused(
            f"the query is not valid or not a single SELECT: {_first_line(error)}",
            cure="write one SELECT; list views with `bitbudget sql --views`",
        ) from error


def _fetch(connection: psycopg.Connection[tuple[object, ...]], query: str, limits: Limits) -> Result:
    # the text is the user's own query: that is the point of the command; the cursor and the transaction are the fences
    statement = pgsql.SQL(query.rstrip().removesuffix(";"))
    with connection.cursor(name="bitbudget_sql") as cursor:
        cursor.execute(statement)
        rows = cursor.fetchmany(limits.rows + 1)
        columns = tuple(column.name for column in cursor.description or ())
        return Result(columns, rows[: limits.rows], len(rows) > limits.rows)


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
