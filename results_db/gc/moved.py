"""A database that was copied elsewhere says so: whoever asked it what is still needed would be told too little.

SQLite has a file beside it, PostgreSQL a comment on Alembic's table, which every host sees and a dump keeps.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import MetaData, Table, text
from sqlalchemy.schema import SetTableComment

from results_db.engine import Database

_TABLE = "alembic_version"
#: what our comment begins with; somebody else's says nothing of a move
_MOVED = "bitbudget moved to "


def mark_moved(database: Database, to: str) -> None:
    """Say in the database, or beside it, that it was moved to ``to``: a URL without its password."""
    if (file := _file(database)) is not None:
        file.write_text(f"{to}\n", encoding="utf-8")
        return
    with database.write() as session:
        session.execute(SetTableComment(Table(_TABLE, MetaData(), comment=f"{_MOVED}{to}")))


def moved_to(database: Database) -> str | None:
    """Where it went; None of one that is in its place."""
    if (file := _file(database)) is not None:
        return file.read_text(encoding="utf-8").strip() if file.exists() else None
    with database.read() as session:
        comment = session.scalar(text("SELECT obj_description(to_regclass(:name), 'pg_class')"), {"name": _TABLE})
    return comment.removeprefix(_MOVED) if comment and comment.startswith(_MOVED) else None


def cure_of_moved(database: Database) -> str:
    """What a person does about it."""
    file = _file(database)
    back = f"remove {file}" if file is not None else f"run in it: COMMENT ON TABLE {_TABLE} IS NULL"
    return f"set BITBUDGET_DATABASE_URL to the new one; if this one is in use again, {back}"


def _file(database: Database) -> Path | None:
    """Beside SQLite's file; None of PostgreSQL."""
    return Path(f"{database.url.database}.moved") if database.is_sqlite else None
