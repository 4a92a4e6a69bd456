"""Bring a database to the newest schema, one process at a time.

The migrations hold tables alone. Views are made anew from results_db.views after each upgrade: they are code, and a
table that a view looks at could not be altered on PostgreSQL.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from results_db.engine import Database
from results_db.views import create_statements, drop_statements

#: any constant will do: PostgreSQL's advisory lock for migrations of this schema
_LOCK = 0x62_69_74_62


def alembic_config(database: Database) -> Config:
    """Alembic's settings for this database; the scripts lie in the ``migrations`` room."""
    config = Config()
    config.set_main_option("script_location", str(Path(str(resources.files("migrations")))))
    config.attributes["database"] = database
    return config


def upgrade(database: Database, revision: str = "head") -> None:
    """``alembic upgrade`` under a lock: on SQLite the write lock, on PostgreSQL an advisory one."""
    config = alembic_config(database)
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection = connection.execution_options(bitbudget_sqlite_begin="IMMEDIATE")
        with connection.begin():
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            _run(connection, drop_statements(inspect(connection).get_view_names()))
            command.upgrade(config, revision)
            if revision == "head":
                _run(connection, create_statements())


def downgrade(database: Database, revision: str) -> None:
    """``alembic downgrade``, for tests and for going back a release."""
    config = alembic_config(database)
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection = connection.execution_options(bitbudget_sqlite_begin="IMMEDIATE")
        with connection.begin():
            config.attributes["connection"] = connection
            _run(connection, drop_statements(inspect(connection).get_view_names()))
            command.downgrade(config, revision)


def _run(connection: Connection, statements: list[str]) -> None:
    for statement in statements:
        connection.execute(text(statement))
