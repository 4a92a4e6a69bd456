"""PostgreSQL's role that can only read the views, and the function that a query runs in as that role.

``SET ROLE`` alone would be no fence: a query that finds a way to set its role back is the service again. A SECURITY
DEFINER function is one: PostgreSQL refuses to change the role inside. So the query is opened as a cursor in a function
that the reader owns; the reader may read the views, whose own rights are those of the service, and nothing else. The
function is STABLE, which allows no command but SELECT, and hands out rows as JSON until rows or bytes run out.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from results_db.sql.contract import CONTRACT

log = logging.getLogger(__name__)

READER = "bitbudget_reader"
SCHEMA = "bitbudget_sql"

_RUN = f"""
CREATE OR REPLACE FUNCTION {SCHEMA}.run(query text, max_rows bigint, max_bytes bigint) RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = {{schema}}, pg_temp AS $body$
DECLARE
    answer refcursor;
    next_row record;
    line text;
    n_rows bigint := 0;
    n_bytes bigint := 0;
BEGIN
    OPEN answer NO SCROLL FOR EXECUTE query;
    LOOP
        FETCH answer INTO next_row;
        EXIT WHEN NOT FOUND;
        IF n_rows >= max_rows THEN
            RETURN NEXT '"rows"';
            EXIT;
        END IF;
        line := row_to_json(next_row)::text;
        n_rows := n_rows + 1;
        n_bytes := n_bytes + octet_length(line);
        IF n_bytes > max_bytes THEN
            RETURN NEXT '"bytes"';
            EXIT;
        END IF;
        RETURN NEXT line;
    END LOOP;
END
$body$
"""

#: true only where nothing is missing and nothing is too much: the role may read no table
STANDS = f"""
SELECT coalesce(bool_and(
    p.prosecdef AND p.provolatile = 's' AND p.proowner = r.oid
    AND NOT (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication)
    AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
    AND has_schema_privilege(r.oid, '{SCHEMA}', 'CREATE') IS FALSE
    AND NOT EXISTS (
        SELECT FROM pg_class c
        WHERE c.relkind IN ('r', 'p', 'S', 'f') AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
        AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(r.oid, c.oid, 'SELECT, UPDATE, USAGE')
            ELSE has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
              OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE') END)
    AND has_function_privilege(p.oid, 'EXECUTE')), false)
FROM pg_proc p JOIN pg_roles r ON r.rolname = '{READER}'
WHERE p.pronamespace = to_regnamespace('{SCHEMA}') AND p.proname = 'run'
"""  # noqa: S608 - names of ours

CURE = (
    f"let an administrator of the database run: CREATE ROLE {READER} NOLOGIN; GRANT {READER} TO the service's user "
    "(`bitbudget sql --reader-role` prints it); then start the server anew"
)


def administrator_sql(user: str) -> str:
    """What an administrator runs once where the service's user may not create roles."""
    name = '"' + user.replace('"', '""') + '"'
    return f"CREATE ROLE {READER} NOLOGIN NOINHERIT;\nGRANT {READER} TO {name};\n"


def describe_views(connection: Connection) -> None:
    """COMMENT ON every view and column of the contract, for psql and whatever else reads catalogs."""
    statements = []
    for view in CONTRACT.values():
        statements.append(f"COMMENT ON VIEW {view.name} IS {_quoted(f'A row is {view.row_is}.')}")
        for column in view.columns:
            meaning = column.meaning if column.unit is None else f"{column.meaning} [{column.unit}]"
            statements.append(f"COMMENT ON COLUMN {view.name}.{column.name} IS {_quoted(meaning)}")
    # the driver takes a single % for a parameter
    connection.exec_driver_sql(";\n".join(statements).replace("%", "%%"))


def install_reader(connection: Connection) -> bool:
    """Make the role, its rights and its function, in the connection's transaction; the views must be there.

    Where the user may not, nothing of it is left, the log says what would help, and queries are refused until then:
    there is no weaker fence to fall back to. Whether it stands in the end.
    """
    try:
        with connection.begin_nested():
            _install(connection)
            if not reader_stands(connection):
                raise _Weak
    except _Weak:
        log.warning("the role %s may do more than read the views, so queries over HTTP are refused", READER)
        return False
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":  # insufficient_privilege
            raise
        log.warning("queries over HTTP are refused: the database's user may not make %s; %s", READER, CURE)
        return False
    return True


def reader_stands(connection: Connection) -> bool:
    """Whether the role and the function are as they were made, and the role may read no table."""
    return bool(connection.exec_driver_sql(STANDS).scalar_one())


class _Weak(Exception):
    """What was installed does not hold."""


def _install(connection: Connection) -> None:
    run = connection.exec_driver_sql
    # two databases of one server that are upgraded at the same time make the role once
    run("SELECT pg_advisory_xact_lock(hashtext('bitbudget_reader'))")
    if not run(f"SELECT 1 FROM pg_roles WHERE rolname = '{READER}'").first():  # noqa: S608
        run(f"CREATE ROLE {READER} NOLOGIN NOINHERIT")
    if not run(f"SELECT pg_has_role(current_user, '{READER}', 'MEMBER')").scalar_one():
        run(f"GRANT {READER} TO CURRENT_USER")
    schema = str(run("SELECT quote_ident(current_schema())").scalar_one())
    service = str(run("SELECT quote_ident(current_user)").scalar_one())
    run(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    run(f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {READER}")
    run(f"GRANT USAGE ON SCHEMA {schema} TO {READER}")
    run(f"GRANT SELECT ON {', '.join(CONTRACT)} TO {READER}")
    # owned by the reader: it runs with the reader's rights
    run(f"SET LOCAL ROLE {READER}")
    run(_RUN.format(schema=schema))
    run(f"REVOKE ALL ON FUNCTION {SCHEMA}.run FROM PUBLIC")
    run(f"GRANT EXECUTE ON FUNCTION {SCHEMA}.run TO {service}")
    run("SET LOCAL ROLE NONE")
    run(f"REVOKE CREATE ON SCHEMA {SCHEMA} FROM {READER}")


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
