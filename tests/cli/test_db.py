"""`bitbudget db`: what it says, what it writes, what it refuses. What copies hold is tested in tests/results_db."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results_db import Database
from results_db.base import Base
from results_db.migrate import head_revision
from results_db.queue.leader import Leader
from results_db.tables import Artefact
from tests.rows import count, fill


@pytest.fixture
def embedded(embedded: Database) -> Database:
    """The same with rows."""
    fill(embedded, tables=Base.metadata.sorted_tables)
    return embedded


def test_a_move_and_back(
    bitbudget: Callable[..., Any],
    embedded: Database,
    tmp_path: Path,
    empty_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITBUDGET_COPY_TO", empty_database_url)
    moved = bitbudget("db", "copy", "--json")
    assert moved.code == 0, moved.err
    tables = {table["name"]: table["n_rows"] for table in moved.json["tables"]}
    assert tables == count(embedded)
    assert all(len(table["content_hash"]) == 64 for table in moved.json["tables"])
    monkeypatch.delenv("BITBUDGET_COPY_TO")
    back = bitbudget("db", "copy", "--from", empty_database_url, "--to", f"sqlite:///{tmp_path / 'back.db'}")
    assert back.code == 0, back.err
    assert "measurements" in back.out
    assert f"{moved.json['n_rows']} rows copied and compared" in back.err
    again = bitbudget("db", "copy", "--to", f"sqlite:///{tmp_path / 'back.db'}")
    assert again.code == 2
    assert "not empty" in again.err
    assert "cure:" in again.err


def test_a_move_under_a_server_is_refused(bitbudget: Callable[..., Any], embedded: Database, tmp_path: Path) -> None:
    leader = Leader(embedded)
    assert leader.hold()
    refused = bitbudget("db", "copy", "--to", f"sqlite:///{tmp_path / 'new.db'}")
    leader.release()
    assert refused.code == 2
    assert "a server runs on this database" in refused.err
    assert "bitbudget down" in refused.err


def test_upgrade_current_downgrade(bitbudget: Callable[..., Any], empty_database_url: str) -> None:
    at = ("--database", empty_database_url)
    assert bitbudget("db", "current", "--json", *at).json["revision"] is None
    assert bitbudget("db", "upgrade", "--json", *at).json["to"] == head_revision()
    assert bitbudget("db", "current", "--json", *at).json["current"] is True
    refused = bitbudget("db", "downgrade", "0004", *at)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    back = bitbudget("db", "downgrade", "0004", "--yes", "--json", *at).json
    assert (back["from"], back["to"]) == (head_revision(), "0004")
    assert bitbudget("db", "current", "--json", *at).json["revision"] == "0004"


def test_backup_and_restore_with_artefacts(
    bitbudget: Callable[..., Any], embedded: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "var" / "artefacts" / "calibrations" / "art_1"
    folder.mkdir(parents=True)
    (folder / "H.bin").write_bytes(b"x" * 100)
    with embedded.write() as session:
        session.add(Artefact(id="art_1", kind="calibration", uri=str(folder), nbytes=100))
    plain = bitbudget("db", "backup", "backups/monday.db")
    assert plain.code == 0, plain.err
    assert "--with-artefacts" in plain.err
    assert bitbudget("db", "backup", "backups/monday.db").code == 2
    with sqlite3.connect("backups/monday.db") as connection:
        assert connection.execute("SELECT count(*) FROM errors").fetchone() == (3,)
    packed = bitbudget("db", "backup", "--with-artefacts", "--json", "backups/monday.tar")
    assert packed.json["artefacts"]["packed"] == [str(folder)]
    assert packed.json["artefacts"]["missing"] == ["uri-0", "uri-1", "uri-2"]

    monkeypatch.setenv("BITBUDGET_VAR_DIR", str(tmp_path / "new"))
    restored = bitbudget("db", "restore", "--json", "backups/monday.tar")
    assert restored.code == 0, restored.err
    assert (restored.json["n_artefacts"], restored.json["n_rows"]) == (1, packed.json["n_rows"])
    assert (tmp_path / "new" / "artefacts" / "calibrations" / "art_1" / "H.bin").read_bytes() == b"x" * 100
    assert sorted(path.name for path in Path("backups").iterdir()) == ["monday.db", "monday.tar"]

    # a target that is not empty is found out before anything is laid into its store
    shutil.rmtree(tmp_path / "new" / "artefacts")
    refused = bitbudget("db", "restore", "backups/monday.tar")
    assert (refused.code, "not empty" in refused.err) == (2, True)
    assert not (tmp_path / "new" / "artefacts").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["db", "downgrade", "0004", "--yes"],
        ["db", "copy", "--to", "sqlite:///new.db"],
        ["db", "backup", "new.db"],
        ["gc"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_not_made_by_looking(
    bitbudget: Callable[..., Any], tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = bitbudget(*words)
    assert said.code == 2
    assert "there is no database at" in said.err
    assert "bitbudget db upgrade" in said.err
    assert bitbudget("db", "current", "--json").json["revision"] is None
    assert not list(tmp_path.rglob("*.db*"))


def test_passwords_are_not_shown(bitbudget: Callable[..., Any]) -> None:
    for url in (
        "postgresql+psycopg://me:hunter2hunter2@127.0.0.1:9/x",
        "postgresql+psycopg://me@127.0.0.1:9/x?password=hunter2hunter2",
        "mysql://me:hunter2hunter2@h/x",
    ):
        told = bitbudget("db", "current", "--database", url)
        assert told.code in (2, 3)
        assert "hunter2" not in told.out + told.err
        assert "cure:" in told.err
