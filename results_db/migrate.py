"""Bring a database to the newest schema, one process at a time.

The migrations hold tables alone. Views are made anew from results_db.views after each upgrade: they are code, and a
table that a view looks at could not be altered on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from results_db.engine import Database
from results_db.errors import SchemaTooNew
from results_db.sql.reader import describe_views, install_reader
from results_db.views import create_statements, drop_statements

#: any constant will do: PostgreSQL's advisory lock for migrations of this schema
MIGRATION_LOCK = 0x62_69_74_62


def alembic_config(database: Database) -> Config:
    """Alembic's settings for this database; the scripts lie in the ``migrations`` room."""
    config = _config()
    config.attributes["database"] = database
    return config


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(str(resources.files("migrations")))))
    return config


@cache
def head_revision() -> str:
    """The schema that this code needs, for example "0005". Kept: to look it up imports every migration."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def present_revision(database: Database) -> str | None:
    """The schema that the database has; None where it has none."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database, revision: str = "head") -> None:
    """``alembic upgrade`` in one transaction under a lock: on SQLite the write lock, on PostgreSQL an advisory one.

    A crash in the middle leaves the schema as it was.

    Raises:
        SchemaTooNew: a later release has migrated this database.
    """
    with _alone(database) as (connection, config):
        _run(connection, drop_statements(inspect(connection).get_view_names()))
        command.upgrade(config, revision)
        if revision == "head":
            _run(connection, create_statements(connection.dialect.name))
            if not database.is_sqlite:
                describe_views(connection)
                install_reader(connection)


def downgrade(database: Database, revision: str) -> None:
    """``alembic downgrade`` under the same lock, for going back a release and for tests; the views go.

    Raises:
        SchemaTooNew: a later release has migrated this database, and only it knows the way back.
    """
    with _alone(database) as (connection, config):
        _run(connection, drop_statements(inspect(connection).get_view_names()))
        command.downgrade(config, revision)


@contextmanager
def _alone(database: Database) -> Iterator[tuple[Connection, Config]]:
    """One transaction that no other migration runs beside."""
    config = alembic_config(database)
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection = connection.execution_options(bitbudget_sqlite_begin="IMMEDIATE")
        with connection.begin():
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            config.attributes["connection"] = connection
            _refuse_newer(connection, config)
            yield connection, config


def _refuse_newer(connection: Connection, config: Config) -> None:
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise SchemaTooNew(present, script.get_current_head() or "none")


def _run(connection: Connection, statements: list[str]) -> None:
    for statement in statements:
        connection.execute(text(statement))
