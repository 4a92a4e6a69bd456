"""Backups: one file of either database, whole or absent; a restore holds what the database held."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import select

from results_db import Database
from results_db.base import Base
from results_db.copy import CannotCopy, Progress
from results_db.copy.artefacts import is_packed, pack, point_to, unpack_artefacts, unpack_database
from results_db.copy.backup import backup_database, restore_database
from results_db.migrate import downgrade, upgrade
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Artefact, Job, JobEvent
from tests.rows import count, fill

TABLES = Base.metadata.sorted_tables
#: for what happens to the file, which is SQLite's whatever it was made of
sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'restored.db'}")
    yield database
    database.dispose()


def contents(database: Database) -> dict[str, list[Any]]:
    with database.engine.connect() as connection:
        return {t.name: sorted(connection.execute(select(t)).all(), key=lambda row: row[0]) for t in TABLES}


def test_a_restore_holds_what_was_backed_up(database: Database, other_database_url: str, tmp_path: Path) -> None:
    counts = fill(database, tables=TABLES)
    report = backup_database(database, tmp_path / "new" / "backup.db")
    assert (report.counts, report.n_rows) == (counts, sum(counts.values()))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["backup.db"], "one file, and nothing beside it"
    target = Database(other_database_url)
    assert stat.S_IMODE(report.path.stat().st_mode) == 0o600, "its owner's alone: it holds hashes of tokens"
    restored = restore_database(report.path, target, scratch=tmp_path)
    assert restored.n_rows == report.n_rows
    assert contents(target) == contents(database)
    # a backup replaces nothing, and a restore neither
    with pytest.raises(CannotCopy, match="exists"):
        backup_database(database, report.path)
    with pytest.raises(CannotCopy, match="not empty"):
        restore_database(report.path, target, scratch=tmp_path)
    target.dispose()


def test_a_backup_under_a_writer_is_one_moment(database: Database, empty: Database, tmp_path: Path) -> None:
    """Each of the writer's transactions has a job and its event: the backup has both or neither."""
    stop, wrote = Event(), Event()

    def write() -> None:
        while not stop.is_set():
            with database.write() as session:
                submit_job(session, JobKind.PROBE, {})
            wrote.set()
            stop.wait(0.002)  # the backup wants the processor too

    writer = Thread(target=write)
    writer.start()
    try:
        assert wrote.wait(30)
        backup_database(database, tmp_path / "backup.db")
    finally:
        stop.set()
        writer.join()
    restore_database(tmp_path / "backup.db", empty, scratch=tmp_path)
    with empty.read() as session:
        jobs = set(session.scalars(select(Job.id)))
        assert jobs == set(session.scalars(select(JobEvent.job_id)))
    assert 0 < len(jobs) <= count(database)["jobs"]


@sqlite_only
def test_an_older_backup_is_brought_up_to_date(database: Database, empty: Database, tmp_path: Path) -> None:
    """One of PostgreSQL has the schema of the release that made it: it is a copy."""
    with database.write() as session:
        job_id = submit_job(session, JobKind.PROBE, {}).id
    downgrade(database, "0004")
    report = backup_database(database, tmp_path / "old.db")
    assert report.revision == "0004"
    before = (tmp_path / "old.db").read_bytes()
    restore_database(tmp_path / "old.db", empty, scratch=tmp_path)
    with empty.read() as session:
        assert session.get_one(Job, job_id).trace_id is None
    assert (tmp_path / "old.db").read_bytes() == before, "the backup stays as it is"


def test_a_backup_on_a_full_disk_leaves_no_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        backup_database(database, tmp_path / "new" / "backup.db")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_no_backup_is_refused_in_words(empty: Database, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.db"
    nonsense.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (x)")
    for path, words in ((nonsense, "damaged"), (foreign, "not one of bitbudget"), (tmp_path / "none.db", "no file")):
        with pytest.raises(CannotCopy, match=words):
            restore_database(path, empty, scratch=tmp_path)


def test_a_database_in_use_is_no_backup(empty: Database, tmp_path: Path) -> None:
    """Its newest rows lie in its log: a copy of the file alone would be an older database, and nobody would know."""
    live = Database(f"sqlite:///{tmp_path / 'live.db'}")
    upgrade(live)
    with pytest.raises(CannotCopy, match="in use") as caught:
        restore_database(tmp_path / "live.db", empty, scratch=tmp_path)
    assert "bitbudget db backup" in caught.value.cure
    live.dispose()


@sqlite_only
def test_a_backup_of_a_later_release_is_refused(database: Database, empty: Database, tmp_path: Path) -> None:
    backup_database(database, tmp_path / "backup.db")
    with sqlite3.connect(tmp_path / "backup.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CannotCopy, match="schema 9999"):
        restore_database(tmp_path / "backup.db", empty, scratch=tmp_path)


@sqlite_only
def test_progress_is_told(database: Database, empty: Database, tmp_path: Path) -> None:
    fill(database, tables=TABLES)
    backup_database(database, tmp_path / "backup.db")
    told: list[Progress] = []
    restore_database(tmp_path / "backup.db", empty, scratch=tmp_path, say=told.append)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].total
    assert told[0].eta_s is not None


@sqlite_only
def test_artefacts_come_along_in_a_tar(database: Database, empty: Database, tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "artefacts", tmp_path / "new" / "artefacts"
    for id_ in ("art_1", "art_2"):
        (old / "calibrations" / id_ / "sub").mkdir(parents=True)
        (old / "calibrations" / id_ / "sub" / "H.bin").write_bytes(id_.encode())
    uris = {
        "art_1": str(old / "calibrations" / "art_1"),
        "art_2": str(old / "calibrations" / "art_2"),
        "art_3": "s3://bucket/calibrations/art_3",
        "art_4": str(old / "calibrations" / "art_4"),
    }
    with database.write() as session:
        session.add_all(Artefact(id=id_, kind="calibration", uri=uri, nbytes=1) for id_, uri in uris.items())
    backup_database(database, tmp_path / "backup.db")
    (tmp_path / "backup.tar.part").write_bytes(b"of a backup that was killed")
    packed = pack(tmp_path / "backup.db", tmp_path / "backup.tar")
    assert packed.packed == (uris["art_1"], uris["art_2"])
    assert (packed.remote, packed.missing) == ((uris["art_3"],), (uris["art_4"],))
    assert is_packed(tmp_path / "backup.tar")
    assert not is_packed(tmp_path / "backup.db")

    shutil.rmtree(tmp_path / "old")
    (new / "calibrations" / "art_2").mkdir(parents=True)  # it is there already, and stays as it is
    (tmp_path / "unpacked").mkdir()
    path = unpack_database(tmp_path / "backup.tar", tmp_path / "unpacked")
    restore_database(path, empty, scratch=tmp_path, change=point_to(new))
    assert unpack_artefacts(tmp_path / "backup.tar", new) == 1
    assert (new / "calibrations" / "art_1" / "sub" / "H.bin").read_bytes() == b"art_1"
    assert list((new / "calibrations" / "art_2").iterdir()) == []
    with empty.read() as session:
        found = dict(session.execute(select(Artefact.id, Artefact.uri)).all())
    assert found == uris | {id_: str(new / "calibrations" / id_) for id_ in ("art_1", "art_2", "art_4")}


def test_a_tar_cannot_write_outside_of_its_folder(tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar"
    (tmp_path / "file").write_text("x")
    with tarfile.open(evil, "w") as tar:
        tar.add(tmp_path / "file", "artefacts/a/../../../outside")
    with pytest.raises(tarfile.FilterError):
        unpack_artefacts(evil, tmp_path / "root" / "deep")
    assert not (tmp_path / "outside").exists()
    with pytest.raises(CannotCopy, match=r"holds no bitbudget\.db"):
        unpack_database(evil, tmp_path)


def test_a_restore_that_is_cut_off_leaves_no_half_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "old" / "calibrations" / "art_1"
    folder.mkdir(parents=True)
    names = ["a", "b", "c"]
    for name in names:
        (folder / name).write_text(name)
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        tar.add(folder, "artefacts/calibrations/art_1")
    root = tmp_path / "new"
    extract = tarfile.TarFile.extract

    def cut_off(tar: tarfile.TarFile, member: tarfile.TarInfo, *args: object, **kwargs: object) -> None:
        if member.name.endswith("/b"):
            raise KeyboardInterrupt
        extract(tar, member, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", cut_off)
        with pytest.raises(KeyboardInterrupt):
            unpack_artefacts(tmp_path / "backup.tar", root)
    assert not (root / "calibrations").exists()
    assert unpack_artefacts(tmp_path / "backup.tar", root) == 1
    assert sorted(path.name for path in (root / "calibrations" / "art_1").iterdir()) == names
    assert [path.name for path in root.iterdir()] == ["calibrations"]
