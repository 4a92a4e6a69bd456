"""The database: reachable, of this release's schema, sound, on a disk that suits it, of one mind with our clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.finding import Finding, fail, ok, warn
from cli.output import nbytes
from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.disk import existing
from results_db.gc import cure_of_moved, moved_to
from results_db.masking import mask, mask_url
from results_db.migrate import head_revision, present_revision
from results_db.queue.workers import SILENT_S, is_silent
from results_db.settings import Settings
from results_db.tables import Artefact, Worker

#: bytes of SQLite's log, which a reader that never ends keeps from being folded in
_LARGE_WAL = 200_000_000
#: seconds between the database's clock and ours: names of files and rows would be out of order
_SKEW_S = 2.0
#: file systems on which SQLite's shared memory does not work, or not for several machines
_FOREIGN = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "virtiofs", "ceph", "glusterfs")


def look_at_database(settings: Settings) -> Iterator[Finding]:
    """Everything about it; nothing more where it does not answer."""
    shown = mask_url(settings.database_url)
    sqlite = settings.database_url.startswith("sqlite")
    path = Path(settings.database_url.partition("///")[2]) if sqlite else None
    if path is not None and not path.exists():
        yield ok("database", f"{shown} is not there yet: the first start makes it")
        return
    database = Database(settings.database_url)
    try:
        yield from _look(database, shown, settings)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        yield fail(
            "database",
            f"{shown} does not answer: {mask(reason)}",
            "start it, and check host, name, user and password in BITBUDGET_DATABASE_URL",
        )
    finally:
        database.dispose()


def _look(database: Database, shown: str, settings: Settings) -> Iterator[Finding]:
    present, head = present_revision(database), head_revision()
    yield ok("database", f"{shown} answers{_server_version(database)}")
    if present is None:
        yield warn("schema", "the database has no tables yet", "bitbudget db upgrade, or start the server")
        return
    if present != head:
        cure = "bitbudget db upgrade (after bitbudget db backup FILE)"
        cure = cure if present < head else "run the release that migrated it"
        yield fail("schema", f"it is at {present}, this release needs {head}", cure)
        return
    yield ok("schema", head)
    if database.is_sqlite:
        yield from _look_at_file(database)
    else:
        yield _look_at_clock(database)
    if (to := moved_to(database)) is not None:
        yield warn("moved", f"this database was copied to {to}", cure_of_moved(database))
    yield from _look_at_rows(database, settings)


def _server_version(database: Database) -> str:
    if database.is_sqlite:
        return ""
    with database.read() as session:
        return f" (PostgreSQL {session.scalar(text('SHOW server_version'))})"


def _look_at_file(database: Database) -> Iterator[Finding]:
    path = Path(str(database.url.database))
    with database.read() as session:
        found = [row[0] for row in session.execute(text("PRAGMA integrity_check(5)"))]
    if found != ["ok"]:
        yield fail("integrity", f"{path} is damaged: {'; '.join(found)}", "restore a backup: bitbudget db restore FILE")
    else:
        yield ok("integrity", f"{path} is sound, {nbytes(path.stat().st_size)}")
    log = path.with_name(f"{path.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    if size > _LARGE_WAL:
        yield warn(
            "write-ahead log",
            f"{log} has {nbytes(size)}",
            "a reader that never ends keeps it: close sqlite3 shells, then restart the server",
        )
    kind = file_system(existing(path))
    if kind.startswith(_FOREIGN):
        yield fail("file system", f"{path} lies on {kind}", "SQLite needs a local disk; several hosts need PostgreSQL")


def _look_at_clock(database: Database) -> Finding:
    before = utc_now()
    with database.read() as session:
        theirs = session.execute(select(db_now())).scalar_one()
    ours = before + (utc_now() - before) / 2
    skew = (theirs - ours).total_seconds()
    if abs(skew) > _SKEW_S:
        return warn(
            "clock",
            f"the database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "let both follow a time server; leases go by the database's clock alone, and are safe",
        )
    return ok("clock", f"the database's clock is within {abs(skew):.1f} s of this machine's")


def _look_at_rows(database: Database, settings: Settings) -> Iterator[Finding]:
    with database.read() as session:
        uris = [uri for uri in session.scalars(select(Artefact.uri)) if "://" not in uri]
        silent = session.scalars(select(Worker.name).where(is_silent())).all()
    missing = [uri for uri in uris if not Path(uri).exists()]
    if missing:
        yield warn(
            "artefact rows",
            f"{len(missing)} of {len(uris)} name what this host cannot see, for example {missing[0]}",
            "mount the store here, or submit the jobs that made them again",
        )
    if silent:
        yield warn(
            "workers",
            f"{', '.join(sorted(silent))} count as up and have been silent for over {SILENT_S:.0f} s",
            "a server marks them as down; start one, or look at their hosts",
        )


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on; empty where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    inside = [(len(point), kind) for _, point, kind, *_ in mounts if path.resolve().is_relative_to(point)]
    return max(inside, default=(0, ""))[1]
