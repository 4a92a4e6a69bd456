"""The checks behind /readyz."""

from __future__ import annotations

from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from results_db import Database
from results_db.migrate import alembic_config
from server.loop import AdvanceLoop


def readiness(database: Database, loop: AdvanceLoop) -> dict[str, dict[str, Any]]:
    """Each check with ``ok`` and a sentence that names the cure where it is not."""
    return {"database": _database(database), "redis": _redis(loop), "loop": _loop(loop)}


def _database(database: Database) -> dict[str, Any]:
    head = ScriptDirectory.from_config(alembic_config(database)).get_current_head()
    try:
        with database.engine.connect() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        return {"ok": False, "detail": f"the database does not answer: {type(error).__name__}"}
    if present != head:
        return {"ok": False, "detail": f"the schema is at {present}, this code needs {head}: start the server anew"}
    return {"ok": True, "detail": f"schema {head}"}


def _redis(loop: AdvanceLoop) -> dict[str, Any]:
    error = loop.relay.ping()
    if error is not None:
        return {"ok": False, "detail": f"Redis does not answer ({error}): jobs wait in the database until it does"}
    return {"ok": True, "detail": "Redis answers"}


def _loop(loop: AdvanceLoop) -> dict[str, Any]:
    if not loop.alive:
        return {"ok": False, "detail": "the advance loop does not run: start the server anew"}
    if loop.last_error is not None:
        return {"ok": False, "detail": f"the advance loop's last turn failed: {loop.last_error}"}
    if not loop.leads:
        return {"ok": True, "detail": "another server on this database turns the advance loop; this one stands by"}
    return {"ok": True, "detail": "the advance loop turns"}
