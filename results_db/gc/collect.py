"""Everything that may go, in one list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from results_db.engine import Database
from results_db.gc.artefacts import orphan_folders, orphan_rows
from results_db.gc.item import Item
from results_db.gc.rows import expired_rows
from results_db.gc.work import crash_reports, idle_copies, idle_workspaces, leftovers
from results_db.settings import Settings

#: nothing younger is ever looked at: what a running job has just written may have no row yet
LEAST_DAYS = 1.0


def find_garbage(database: Database, settings: Settings, *, days: float = LEAST_DAYS) -> Iterator[Item]:
    """What nothing refers to, nobody holds, and nothing has touched for ``days`` (at least one); removes nothing.

    Unfinished work and copies of remote artefacts are kept for ``settings.keep_work_days``. A remote store is left
    alone: only its rows are looked at.
    """
    days = max(days, LEAST_DAYS)
    store = None if "://" in settings.artefacts_url else Path(settings.artefacts_url)
    if store is not None:
        yield from orphan_folders(database, store, days)
    yield from orphan_rows(database, store, days)
    keep = max(settings.keep_work_days, LEAST_DAYS)
    yield from idle_workspaces(settings.var_dir, keep)
    yield from idle_copies(settings.var_dir, keep)
    yield from leftovers(leftover_folders(settings), days)
    yield from crash_reports(settings.var_dir, keep)
    yield from expired_rows(database)


def leftover_folders(settings: Settings) -> list[Path]:
    """Where moves happen."""
    roots = [settings.var_dir / "work"]
    if "://" not in settings.artefacts_url:
        roots.append(Path(settings.artefacts_url))
    kinds = [path for root in roots if root.is_dir() for path in sorted(root.iterdir()) if path.is_dir()]
    return [*kinds, settings.var_dir / "cache" / "artefacts"]
