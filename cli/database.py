"""The database itself, for the commands that need no server: opened, and its errors told in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cli.errors import CliError, ExitCode
from cli.options import settings
from results_db import Database
from results_db.copy import CannotCopy
from results_db.errors import SchemaTooNew
from results_db.masking import mask, mask_url
from results_db.migrate import head_revision, present_revision


@contextmanager
def open_database(url: str | None, *, there: bool = False) -> Iterator[Database]:
    """The database at ``url``; its errors become words and an exit code. ``there``: one that is absent is not made.

    Raises:
        CliError: no such database, or it refuses what was asked.
    """
    url = url or settings().database_url
    try:
        if make_url(url).get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError
    except (ArgumentError, ValueError):
        raise CliError(
            f"{mask_url(url)!r} is no URL of a database",
            cure="write sqlite:////path/to/file.db or postgresql+psycopg://user@host/database",
        ) from None
    database = Database(url)
    if there and is_absent(database.url):
        raise CliError(
            f"there is no database at {database.url.database} yet",
            cure="the first start makes it, and so does `bitbudget db upgrade`; BITBUDGET_DATABASE_URL names another",
        )
    try:
        yield database
    except CannotCopy as error:
        raise CliError(str(error), cure=error.cure) from error
    except SchemaTooNew as error:
        raise CliError(str(error)) from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CliError(
            f"the database {shown(database)} refused: {mask(reason)}",
            cure="`bitbudget doctor` looks closer",
            code=ExitCode.UNREACHABLE,
        ) from error
    finally:
        database.dispose()


def require_schema(database: Database) -> None:
    """
    Raises:
        CliError: the database has another schema than this release's, or none.
    """
    present, head = present_revision(database), head_revision()
    if present != head:
        raise CliError(
            f"the database {shown(database)} has schema {present or 'none'}, this release needs {head}",
            cure="bitbudget db upgrade; if it should have rows, see BITBUDGET_DATABASE_URL",
        )


def is_absent(url: URL) -> bool:
    """Whether it is a SQLite file that connecting would make."""
    path = url.database
    return url.get_backend_name() == "sqlite" and bool(path) and path != ":memory:" and not Path(str(path)).exists()


def shown(database: Database) -> str:
    """Its URL without the password, wherever that stands."""
    return mask_url(database.url.render_as_string(hide_password=False))
