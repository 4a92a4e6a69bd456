"""A backup is one SQLite file, whichever database it is of; a restore is a copy of it into an empty database."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from results_db.copy.copy import CopyReport, Progress, copy_database, require_empty
from results_db.copy.errors import CannotCopy
from results_db.engine import Database
from results_db.errors import SchemaTooNew
from results_db.migrate import present_revision, upgrade

#: pages that SQLite copies at once; -1 is all: smaller steps begin again whenever somebody writes
_ALL_PAGES = -1


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds."""

    path: Path
    revision: str
    nbytes: int
    #: table name → rows
    counts: dict[str, int]

    @property
    def n_rows(self) -> int:
        return sum(self.counts.values())


def backup_database(
    database: Database, path: Path, *, say: Callable[[Progress], None] = lambda progress: None
) -> BackupReport:
    """Write one moment of the database, which may be in use, to a new file.

    SQLite's own backup, or of PostgreSQL a checked copy row by row. The file appears when it is whole and on the disk,
    and nobody but its owner may read it.

    Raises:
        CannotCopy: the file exists, or the database has no schema, or an older one than this release copies.
    """
    if path.exists():
        raise CannotCopy(f"{path} exists", "name a new file: a backup never replaces another")
    if present_revision(database) is None:
        raise CannotCopy("the database has no tables: there is nothing to back up", "see BITBUDGET_DATABASE_URL")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _remove(part)
    # its owner's alone, as it holds hashes of tokens, and none that somebody else laid there
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        if database.is_sqlite:
            _copy_file(Path(str(database.url.database)), part)
        else:
            copy = Database(f"sqlite:///{part}")
            try:
                copy_database(database, copy, hold=False, say=say)
            finally:
                copy.dispose()
        report = _close_file(part, path)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        _remove(part)
    return report


def restore_database(
    path: Path,
    target: Database,
    *,
    scratch: Path,
    change: Callable[[Database], None] = lambda source: None,
    say: Callable[[Progress], None] = lambda progress: None,
) -> CopyReport:
    """Fill an empty database with a backup, older schemas brought up to date on the way; the file stays as it is.

    Args:
        scratch: an existing folder for a private copy of the file, which is removed again.
        change: may alter that copy before its rows go out. It is called once backup and target are found good.

    Raises:
        CannotCopy: no backup, a damaged one, one of a later release, a database in use, or a target that is not empty.
    """
    if not path.is_file():
        raise CannotCopy(f"{path} is no file", "name a file that `bitbudget db backup` wrote")
    if path.with_name(f"{path.name}-wal").exists():
        # a copy of the file alone would lack what its log holds; and SQLite's own files are not opened beside it
        raise CannotCopy(
            f"{path} is a database that is in use, or was when its process was killed, and no backup",
            "back it up first: bitbudget db backup --database URL",
        )
    with _opened(path, scratch) as source:
        upgrade(target)
        require_empty(target)
        change(source)
        return copy_database(source, target, hold=False, say=say)


@contextmanager
def _opened(path: Path, scratch: Path) -> Iterator[Database]:
    """A private copy of a backup, with the newest schema."""
    with tempfile.TemporaryDirectory(prefix="bitbudget-restore-", dir=scratch) as folder:
        private = Path(folder) / "backup.db"
        shutil.copyfile(path, private)
        _check_file(private, path)
        source = Database(f"sqlite:///{private}")
        try:
            if present_revision(source) is None:
                raise CannotCopy(f"{path} is a database, but not one of bitbudget", "name a file of `db backup`")
            try:
                upgrade(source)
            except SchemaTooNew as error:
                raise CannotCopy(
                    f"{path}: {error}", "restore it with the release that wrote it, or a later one"
                ) from error
            yield source
        finally:
            source.dispose()


def _copy_file(source: Path, target: Path) -> None:
    """SQLite's online backup. In WAL mode nobody waits for it: it reads one moment in one go."""
    uri = f"file:{quote(str(source))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=30)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer, pages=_ALL_PAGES)


def _close_file(part: Path, path: Path) -> BackupReport:
    """Make it one file without a log beside it, check it, and bring it to the disk."""
    with closing(sqlite3.connect(part)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        _integrity(connection, path)
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = sorted(name for name in names if name != "alembic_version" and not name.startswith("sqlite_"))
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}  # noqa: S608
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    return BackupReport(path, revision, part.stat().st_size, counts)


def _check_file(private: Path, path: Path) -> None:
    try:
        with closing(sqlite3.connect(private)) as connection:
            _integrity(connection, path)
    except sqlite3.DatabaseError as error:
        raise CannotCopy(f"{path} is no SQLite file, or a damaged one: {error}", "name another backup") from error


def _integrity(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise CannotCopy(f"{path} is damaged: {found}", "name another backup, or see `bitbudget doctor`")


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal", ".loop"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
