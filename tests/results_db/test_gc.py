"""What gc finds and removes, and above all what it leaves alone."""

from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, update

from results_db import Database
from results_db.clock import utc_now
from results_db.gc import Item, find_garbage
from results_db.locks import FileLock
from results_db.settings import Settings
from results_db.tables import (
    Allocation,
    Artefact,
    Calibration,
    Compression,
    IdempotencyKey,
    Job,
    JobEvent,
    Model,
    PageSession,
    Token,
)

DAYS = 86_400.0


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return Settings(var_dir=tmp_path / "var", keep_work_days=3)


def make(path: Path, *, days: float, nbytes: int = 10) -> Path:
    """A folder with a file, last touched so many days ago."""
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"x" * nbytes)
    return age(path, days)


def age(path: Path, days: float) -> Path:
    when = time.time() - days * DAYS
    for part in [*path.rglob("*"), path]:
        os.utime(part, (when, when))
    return path


@pytest.fixture(autouse=True)
def change_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's time of change cannot be set: here it is that of its last writing."""
    monkeypatch.setattr("results_db.gc.folders._touched", lambda path: path.lstat().st_mtime)


def id_of(prefix: str, number: int) -> str:
    return f"{prefix}_{number:023x}"


class Rows:
    """Rows that refer to artefacts, with what they need themselves."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.write() as session:
            session.add(Model(id="mod_1", name="m", source="s"))
            session.add(Job(id="job_1", kind="compress", state="succeeded", params={}))
            session.flush()

    def artefact(self, number: int, uri: str, days: float) -> str:
        with self.database.write() as session:
            row = Artefact(id=f"art_{number}", kind="k", uri=uri, nbytes=1)
            session.add(row)
            row.created_at = utc_now() - timedelta(days=days)
        return f"art_{number}"

    def calibration(self, number: int, artefact_id: str) -> None:
        numbers = {
            name: 1 for name in ("n_samples", "sample_length", "n_tokens", "seed", "numerics_version", "seconds")
        }
        words = {"content_hash": f"c{number}", "token_hash": "t", "device_kind": "cpu"}
        with self.database.write() as session:
            session.add(
                Calibration(
                    id=id_of("cal", number), model_id="mod_1", artefact_id=artefact_id, text={}, **numbers, **words
                )
            )

    def compression(self, number: int, artefact_id: str) -> None:
        with self.database.write() as session:
            if session.scalar(select(func.count()).select_from(Calibration)) == 0:
                raise AssertionError("a compression needs a calibration")
            calibration = session.scalars(select(Calibration.id).limit(1)).one()
            words = {"name": "a", "kind": "optimal", "scope": "decoder", "content_hash": f"c{number}"}
            numbers = {
                name: 1
                for name in (
                    "matrix_bytes",
                    "fixed_bytes",
                    "total_bytes",
                    "bits_per_weight",
                    "n_distinct_configs",
                    "seconds",
                )
            }
            allocation = Allocation(
                id=f"alloc_{number}", model_id="mod_1", overrides_yaml="", details={}, **words, **numbers
            )
            session.add(allocation)
            session.flush()
            session.add(
                Compression(
                    id=id_of("cmp", number),
                    model_id="mod_1",
                    calibration_id=calibration,
                    allocation_id=allocation.id,
                    job_id="job_1",
                    artefact_id=artefact_id,
                    content_hash=f"c{number}",
                    numerics_version=1,
                    device_kind="cpu",
                    expected_bytes=1,
                    actual_bytes=1,
                    seconds=1,
                )
            )


def found(database: Database, chosen: Settings) -> dict[str, Item]:
    return {f"{item.kind} {Path(item.name).name}": item for item in find_garbage(database, chosen)}


def test_an_artefact_of_a_kill_between_move_and_row_is_found(database: Database, chosen: Settings) -> None:
    store = Path(chosen.artefacts_url)
    orphan = make(store / "compressions" / id_of("cmp", 1), days=2, nbytes=1000)
    make(store / "compressions" / id_of("cmp", 2), days=0.9)
    make(store / "compressions" / "mine", days=100)
    make(store / "notes" / id_of("cmp", 3), days=100)
    (item,) = find_garbage(database, chosen)
    assert (item.kind, item.name, item.nbytes) == ("artefact", str(orphan), 1000)
    assert orphan.exists(), "finding removes nothing"
    assert item.remove()
    assert not orphan.exists()
    assert sorted(path.name for path in (store / "compressions").iterdir()) == [id_of("cmp", 2), "mine"]


def test_an_artefact_whose_row_came_meanwhile_stays(database: Database, chosen: Settings) -> None:
    path = make(Path(chosen.artefacts_url) / "calibrations" / id_of("cal", 1), days=2)
    (item,) = find_garbage(database, chosen)
    Rows(database).artefact(1, str(path), 0)
    assert not item.remove()
    assert path.exists()


def test_a_database_is_not_locked_while_a_folder_goes(
    database: Database, chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(chosen.var_dir / "artefacts" / "calibrations" / f"cal_{'0' * 23}", days=2)
    (found,) = find_garbage(database, chosen)
    remove = shutil.rmtree

    def writes_meanwhile(grave: Path) -> None:
        assert not path.exists()
        # on SQLite this would wait for the lock, and give up
        with database.write() as session:
            session.execute(delete(Token))
        remove(grave)

    monkeypatch.setattr("results_db.gc.folders.shutil.rmtree", writes_meanwhile)
    assert found.remove()
    assert list(path.parent.iterdir()) == []


def test_a_store_under_another_path_than_rows_tell_loses_nothing(database: Database, chosen: Settings) -> None:
    make(Path(chosen.artefacts_url) / "calibrations" / id_of("cal", 1), days=50)
    rows = Rows(database)
    rows.calibration(1, rows.artefact(1, f"/old/mount/calibrations/{id_of('cal', 1)}", 50))
    assert list(find_garbage(database, chosen)) == []


def test_a_row_that_nothing_has_goes_with_its_folder(database: Database, chosen: Settings) -> None:
    rows = Rows(database)
    inside = make(Path(chosen.artefacts_url) / "calibrations" / id_of("cal", 1), days=5)
    outside = make(chosen.var_dir.parent / "elsewhere" / "calibrations" / id_of("cal", 2), days=5)
    rows.artefact(1, str(inside), 5)
    rows.artefact(2, str(outside), 5)
    rows.artefact(3, "s3://bucket/calibrations/x", 5)
    rows.artefact(4, "/young", 0.5)
    for item in list(find_garbage(database, chosen)):
        assert item.kind == "artefact row"
        assert item.remove()
    with database.read() as session:
        assert session.scalars(select(Artefact.id)).all() == ["art_4"]
    assert not inside.exists()
    assert outside.exists(), "nothing outside of the store is ever removed"


def test_work_that_somebody_holds_stays(database: Database, chosen: Settings) -> None:
    work = chosen.var_dir / "work" / "compressions"
    held, idle, young = (make(work / f"{n:032x}", days=days) for n, days in ((1, 9), (2, 9), (3, 2)))
    copy = make(chosen.var_dir / "cache" / "artefacts" / f"{4:032x}", days=9)
    lock = FileLock.try_acquire(held.with_suffix(".lock"))
    assert lock is not None
    reader = FileLock.try_acquire(copy.with_suffix(".lock"), shared=True)
    assert reader is not None
    items = found(database, chosen)
    assert set(items) == {f"workspace {idle.name}"}
    reader.release()
    assert f"remote copy {copy.name}" in found(database, chosen)
    taken = FileLock.try_acquire(idle.with_suffix(".lock"))
    assert not items[f"workspace {idle.name}"].remove(), "somebody went on with it meanwhile"
    assert taken is not None
    taken.release()
    assert items[f"workspace {idle.name}"].remove()
    assert [path.exists() for path in (held, idle, young)] == [True, False, True]
    assert not idle.with_suffix(".lock").exists()
    lock.release()


def test_leftovers_crash_reports_and_expired_rows_go(database: Database, chosen: Settings) -> None:
    store = Path(chosen.artefacts_url)
    old = make(store / "compressions" / f".{id_of('cmp', 1)}.x7.old", days=2)
    half = make(chosen.var_dir / "work" / "compressions" / ".abc.x7.tmp", days=2)
    crash = chosen.var_dir / "crashes" / "att_1.txt"
    crash.parent.mkdir(parents=True)
    crash.write_text("Segmentation fault")
    age(crash.parent, 4)
    now = utc_now()
    with database.write() as session:
        session.add(Token(id="tok_1", name="t", token_hash="h", scope="read"))
        session.flush()
        for name, days in (("old", 8), ("new", 6)):
            words = {"key": name, "path": "/", "request_hash": "h", "status": 201, "headers": {}}
            session.add(IdempotencyKey(id=name, created_at=now - timedelta(days=days), **words))
        for name, hours in (("ended", -1), ("open", 1)):
            expires = now + timedelta(hours=hours)
            session.add(PageSession(id=name, token_id="tok_1", secret_hash=name, expires_at=expires))
    items = list(find_garbage(database, chosen))
    assert [item.kind for item in items] == [
        "leftover",
        "leftover",
        "crash report",
        "idempotency keys",
        "page sessions",
    ]
    assert all(item.remove() for item in items)
    assert not any(path.exists() for path in (old, half, crash))
    with database.read() as session:
        assert session.scalars(select(IdempotencyKey.id)).all() == ["new"]
        assert session.scalars(select(PageSession.id)).all() == ["open"]
        assert session.scalars(select(Token.id)).all() == ["tok_1"]
    assert list(find_garbage(database, chosen)) == []


def test_links_are_not_followed(database: Database, chosen: Settings) -> None:
    target = make(chosen.var_dir.parent / "precious", days=50)
    folder = Path(chosen.artefacts_url) / "compressions"
    folder.mkdir(parents=True)
    (folder / id_of("cmp", 1)).symlink_to(target)
    assert list(find_garbage(database, chosen)) == []


_FOLDER = st.tuples(
    st.sampled_from(["calibrations", "compressions"]),
    st.floats(0, 5),
    st.sampled_from(["none", "row", "used row"]),
    st.floats(0, 5),
)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders=st.lists(_FOLDER, max_size=6))
def test_nothing_that_a_row_refers_to_is_ever_removed(
    folders: list[tuple[str, float, str, float]], database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with database.write() as session:
        for table in (Compression, Calibration, Artefact, Allocation, JobEvent, Job, Model):
            session.execute(delete(table))
    rows = Rows(database)
    chosen = Settings(var_dir=tmp_path_factory.mktemp("var"))
    rows.calibration(99, rows.artefact(99, "s3://bucket/x", 9))
    kept, goes = set(), set()
    for number, (kind, folder_days, row, row_days) in enumerate(folders):
        prefix = {"calibrations": "cal", "compressions": "cmp"}[kind]
        path = make(Path(chosen.artefacts_url) / kind / id_of(prefix, number), days=folder_days)
        if row != "none":
            artefact_id = rows.artefact(number, str(path), row_days)
            if row == "used row":
                (rows.calibration if prefix == "cal" else rows.compression)(number, artefact_id)
        unused = folder_days >= 1.001 if row == "none" else row == "row" and row_days >= 1.001
        needed = row == "used row" or (folder_days if row == "none" else row_days) <= 0.999
        (goes if unused else kept if needed else set()).add(path)
    for item in list(find_garbage(database, chosen)):
        item.remove()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in goes)
    with database.read() as session:
        for uri in session.scalars(select(Artefact.uri).join(Compression, Compression.artefact_id == Artefact.id)):
            assert Path(uri).exists()


def test_a_remote_store_is_left_alone(database: Database, tmp_path: Path) -> None:
    chosen = Settings(var_dir=tmp_path / "var", artefacts_url="s3://bucket/prefix")
    make(tmp_path / "var" / "artefacts" / "compressions" / id_of("cmp", 1), days=9)
    Rows(database).artefact(1, "s3://bucket/prefix/compressions/x", 9)
    (item,) = find_garbage(database, chosen)
    assert item.kind == "artefact row"
    assert "only the row goes" in item.reason


def test_history_stays(database: Database, chosen: Settings) -> None:
    rows = Rows(database)
    with rows.database.write() as session:
        session.add(JobEvent(job_id="job_1", kind="state", state="succeeded"))
        session.flush()
        session.execute(update(JobEvent).values(created_at=utc_now() - timedelta(days=4000)))
    assert list(find_garbage(database, chosen)) == []
