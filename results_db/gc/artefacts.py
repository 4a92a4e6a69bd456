"""Artefacts that no row refers to: folders without a row, and rows that no calibration and no compression has.

A kill between the move of a finished folder to its place and the write of its row leaves the one; nothing of today's
leaves the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.engine import Database
from results_db.gc.folders import age_days, bury, children, remove_whole, size_of
from results_db.gc.item import Item
from results_db.tables import Artefact, Calibration, Compression

#: kind's folder → names that are ours; anything else in the store is somebody else's
_OURS = {
    "calibrations": re.compile(r"cal_[0-9a-f]{23}(\.part)?"),
    "compressions": re.compile(r"cmp_[0-9a-f]{23}(\.part)?"),
}


def orphan_folders(database: Database, root: Path, days: float) -> Iterator[Item]:
    """Folders of the store that no row names and nothing has touched for so many days."""
    with database.read() as session:
        known = {_place(uri) for uri in session.scalars(select(Artefact.uri))}
    for kind, pattern in _OURS.items():
        for path in children(root / kind):
            if not pattern.fullmatch(path.name) or _place(str(path)) in known or age_days(path) < days:
                continue
            yield Item("artefact", str(path), size_of(path), "no row names it", partial(_remove_folder, database, path))


def orphan_rows(database: Database, root: Path | None, days: float) -> Iterator[Item]:
    """Rows that nothing refers to, older than so many days, with their folders where these lie in the store.

    Args:
        root: the store; None where it is remote.
    """
    with database.read() as session:
        rows = session.execute(select(Artefact.id, Artefact.uri).where(_unused(days))).all()
    for id_, uri in rows:
        folder = _inside(uri, root)
        there = folder is not None and folder.exists()
        reason = "no calibration and no compression has it"
        if not there:
            reason += "; only the row goes: what it names lies outside of the store, or nowhere"
        nbytes = size_of(folder) if folder is not None and there else 0
        remove = partial(_remove_row, database, id_, folder if there else None, days)
        yield Item("artefact row", f"{id_} ({uri})", nbytes, reason, remove)


def _remove_folder(database: Database, path: Path) -> bool:
    # SQLite: nobody can write a row meanwhile. PostgreSQL: a job that would do so now began a day ago
    with database.write() as session:
        if _named(session, str(path)):
            return False
        # only the rename under the write lock: gigabytes go afterwards, while workers write
        remove = bury(path)
    remove()
    return True


def _remove_row(database: Database, id_: str, folder: Path | None, days: float) -> bool:
    with database.write() as session:
        gone = session.execute(delete(Artefact).where(Artefact.id == id_, _unused(days)).returning(Artefact.uri)).all()
        shared = bool(gone) and _named(session, gone[0][0])
    if gone and folder is not None and not shared:
        remove_whole(folder)
    return bool(gone)


def _place(uri: str) -> tuple[str, ...]:
    """Kind and name: the store may be mounted, linked or have been moved under another path than rows tell."""
    return PurePosixPath(uri).parts[-2:]


def _named(session: Session, uri: str) -> bool:
    """Whether a row names this artefact, wherever it says that the store is."""
    ending = "/".join(_place(uri))
    return bool(session.scalar(select(exists().where(Artefact.uri.endswith(ending, autoescape=True)))))


def _unused(days: float) -> ColumnElement[bool]:
    return (
        ~exists().where(Calibration.artefact_id == Artefact.id)
        & ~exists().where(Compression.artefact_id == Artefact.id)
        & (Artefact.created_at < utc_now() - timedelta(days=days))
    )


def _inside(uri: str, root: Path | None) -> Path | None:
    """The folder of a URI, where it is one of ours in the store."""
    if root is None or "://" in uri:
        return None
    path = Path(uri)
    ours = _OURS.get(path.parent.name)
    return path if path.parent.parent == root and ours is not None and ours.fullmatch(path.name) else None
