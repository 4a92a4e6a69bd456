"""`bitbudget gc`: it says first and removes when told. What it finds is tested in tests/results_db."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from results_db import Database


def test_nothing_goes_without_yes(
    bitbudget: Callable[..., Any], embedded: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("results_db.gc.folders._touched", lambda path: path.lstat().st_mtime)
    folder = tmp_path / "var" / "artefacts" / "compressions" / f"cmp_{1:023x}"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"x" * 2_500_000)
    for path in (folder / "weights.safetensors", folder):
        os.utime(path, (0, 0))
    told = bitbudget("gc")
    assert told.code == 0, told.err
    assert "2.50 MB would go; --yes removes it" in told.err
    assert folder.name in told.out
    assert folder.exists()
    as_json = bitbudget("gc", "--json").json
    assert (as_json["removed"], as_json["nbytes"]) == (False, 2_500_000)
    assert as_json["items"][0]["name"] == str(folder)
    assert "1 things, 2.50 MB removed" in bitbudget("gc", "--yes").err
    assert not folder.exists()
    assert "nothing lies around" in bitbudget("gc").err


def test_less_than_a_day_is_refused(bitbudget: Callable[..., Any], embedded: Database) -> None:
    assert bitbudget("gc", "--older-than", "0.5").code == 2


def test_a_database_that_was_moved_away_is_not_asked(
    bitbudget: Callable[..., Any], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", database.url.render_as_string(hide_password=False))
    assert bitbudget("gc").code == 0
    moved = bitbudget("db", "copy", "--to", f"sqlite:///{tmp_path / 'new.db'}")
    assert moved.code == 0, moved.err
    refused = bitbudget("gc", "--yes")
    assert refused.code == 2
    assert "was moved to sqlite" in refused.err
    # the cure that it names, for a database that is in use again
    if database.is_sqlite:
        Path(refused.err.rpartition("remove ")[2].strip()).unlink()
    else:
        with database.write() as session:
            session.execute(text(refused.err.rpartition("run in it: ")[2]))
    assert bitbudget("gc").code == 0


def test_a_database_that_is_not_there_is_not_asked(bitbudget: Callable[..., Any]) -> None:
    assert "there is no database at" in bitbudget("gc").err
