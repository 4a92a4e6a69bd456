"""`bitbudget doctor` finds what is broken: each test breaks one thing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cli.doctor import Finding, Level
from cli.doctor import database as database_checks
from cli.doctor import device as device_checks
from cli.doctor import disk as disk_checks
from cli.doctor.database import look_at_database
from cli.doctor.device import ask_worker, judge_gpus, look_at_device
from cli.doctor.disk import look_at_disks
from cli.doctor.redis import judge, look_at_redis
from cli.doctor.stack import look_at_stack
from cli.doctor.versions import look_at_versions, pins
from cli.stack.record import StackRecord
from results_db import Database
from results_db.clock import utc_now
from results_db.gc import mark_moved
from results_db.migrate import head_revision, upgrade
from results_db.settings import Settings
from results_db.tables import Artefact, Worker

REPO = Path(__file__).resolve().parents[2]


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.about: finding for finding in findings}


def bad(findings: Any) -> dict[str, Level]:
    return {finding.about: finding.level for finding in findings if finding.level is not Level.OK}


@pytest.fixture
def chosen(database_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, var_dir=tmp_path / "var", redis_url="unix:///nowhere.sock")


# --- the command ---


def test_a_new_folder_is_healthy(bitbudget: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_checks, "_LITTLE", 0)
    monkeypatch.setattr(device_checks, "_LITTLE_MEMORY", 0)
    found = bitbudget("doctor", "--json")
    assert found.code == 0, found.out
    named = {finding["about"]: finding for finding in found.json["findings"]}
    assert {"settings", "python", "packages", "var folder", "database", "redis", "device", "stack"} <= set(named)
    assert {finding["level"] for finding in named.values()} <= {"ok", "warn"}
    assert "the first start makes it" in named["database"]["detail"]


def test_a_failure_is_exit_code_1_and_has_a_cure(
    bitbudget: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", "postgresql+psycopg://me:hunter2hunter2@127.0.0.1:9/x")
    monkeypatch.setenv("BITBUDGET_REDIS_URL", "redis://:hunter2hunter2@127.0.0.1:9/0")
    found = bitbudget("doctor")
    assert found.code == 1
    assert "fail  database" in found.out
    assert "→ start it, and check host, name, user and password" in found.out
    assert "fail  redis" in found.out
    assert "hunter2" not in found.out + found.err
    assert sum(line.startswith("fail") for line in found.out.splitlines()) == 2


def test_a_misspelt_variable_is_named(bitbudget: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBUDGET_DEVISE", "cuda")
    findings = bitbudget("doctor", "--json").json["findings"]
    assert findings[0]["about"] == "settings"
    assert "did you mean BITBUDGET_DEVICE?" in findings[0]["detail"]


# --- the database ---


def test_a_good_database(chosen: Settings) -> None:
    findings = by_name(look_at_database(chosen))
    assert bad(findings.values()) == {}
    assert findings["schema"].detail == head_revision()
    assert ("integrity" in findings) != ("clock" in findings)


def test_an_old_and_a_newer_schema(chosen: Settings, database: Database) -> None:
    for revision, cure in (("0004", "db upgrade"), ("9999", "the release that migrated it")):
        with database.engine.begin() as connection:
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        finding = by_name(look_at_database(chosen))["schema"]
        assert finding.level is Level.FAIL
        assert cure in str(finding.cure)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_damaged_file(chosen: Settings, database: Database) -> None:
    path = Path(str(database.url.database))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        # the index of job names now claims to lie where a table does
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0"))
        connection.execute(
            "UPDATE sqlite_master SET rootpage = ? WHERE name = 'ix_jobs_state_kind'", (roots["ix_studies_name"],)
        )
    connection.close()
    findings = by_name(look_at_database(chosen))
    assert findings["integrity"].level is Level.FAIL
    assert "db restore" in str(findings["integrity"].cure)


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_file_that_is_no_database(chosen: Settings, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"no database at all" * 1000)
    findings = by_name(look_at_database(chosen.model_copy(update={"database_url": f"sqlite:///{path}"})))
    assert findings["database"].level is Level.FAIL
    assert "not a database" in findings["database"].detail


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_a_large_log_a_foreign_disk_and_a_moved_database(
    chosen: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as session:
        session.add(Artefact(id="art_1", kind="k", uri="s3://b/x", nbytes=1))
    monkeypatch.setattr(database_checks, "_LARGE_WAL", 1)
    monkeypatch.setattr(database_checks, "file_system", lambda path: "nfs4")
    Path(f"{database.url.database}.moved").write_text("postgresql+psycopg://h/x\n")
    levels = bad(look_at_database(chosen))
    assert levels == {"write-ahead log": Level.WARN, "file system": Level.FAIL, "moved": Level.WARN}


def test_a_database_that_was_moved(chosen: Settings, database: Database) -> None:
    assert "moved" not in by_name(look_at_database(chosen))
    mark_moved(database, "postgresql+psycopg://h/x")
    finding = by_name(look_at_database(chosen))["moved"]
    assert (finding.level, finding.detail) == (Level.WARN, "this database was copied to postgresql+psycopg://h/x")


@pytest.mark.parametrize("database_backend", ["postgresql"], indirect=True)
def test_a_clock_that_is_off(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_checks, "utc_now", lambda: utc_now() - timedelta(seconds=60))
    finding = by_name(look_at_database(chosen))["clock"]
    assert finding.level is Level.WARN
    assert "60.0 s ahead of" in finding.detail


def test_rows_that_name_what_is_not_there(chosen: Settings, database: Database) -> None:
    with database.write() as session:
        session.add(Artefact(id="art_1", kind="k", uri="/nowhere/at/all", nbytes=1))
        worker = {"hostname": "h", "pid": 1, "device": "cpu", "device_kind": "cpu", "state": "up", "versions": {}}
        session.add(Worker(id="wrk_1", name="gone", heartbeat_at=utc_now() - timedelta(hours=1), **worker))
    findings = by_name(look_at_database(chosen))
    assert "1 of 1 name what this host cannot see, for example /nowhere/at/all" in findings["artefact rows"].detail
    assert "gone count as up" in findings["workers"].detail


# --- Redis ---


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
def test_redis(chosen: Settings, redis_url: str) -> None:
    assert bad(look_at_redis(chosen)) == {"redis": Level.FAIL}
    assert bad(look_at_redis(chosen.model_copy(update={"redis_url": redis_url}))) == {}


def test_an_old_redis_and_one_that_forgets() -> None:
    assert bad(judge("r", {"redis_version": "5.0.7"})) == {"redis": Level.FAIL}
    forgets = {"redis_version": "7.2.4", "maxmemory": 10**8, "maxmemory_policy": "allkeys-lru"}
    assert bad(judge("r", forgets)) == {"redis memory": Level.WARN}


# --- the device ---


def test_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    finding = by_name(look_at_device(Settings(var_dir=tmp_path, device="RTX 9999 Ti")))["device"]
    assert finding.level is Level.FAIL
    assert "never falls back to the cpu" in finding.detail


def test_the_worker_is_asked(tmp_path: Path) -> None:
    assert ask_worker(Settings(var_dir=tmp_path, device="cpu"))["matching"] == []


def test_who_holds_a_gpu_is_named() -> None:
    gpu = {"uuid": "GPU-a", "name": "NVIDIA H100", "memory_used": 3 * 10**9, "memory_total": 80 * 10**9}
    gpus = [
        gpu | {"index": 0, "holders": []},
        gpu | {"index": 1, "holders": ["python (pid 7, 812 MB)"]},
    ]
    first, second = judge_gpus("H100", {"gpus": gpus, "matching": [0, 1], "trouble": None})
    assert (first.level, second.level) == (Level.OK, Level.WARN)
    assert "3.00 GB of 80.00 GB in use, by python (pid 7, 812 MB)" in second.detail
    shared = gpus[0] | {"memory_used": 0, "memory_total": 0}
    (silent,) = judge_gpus("H100", {"gpus": [shared], "matching": [0], "trouble": None})
    assert silent.detail == "cuda:0 = NVIDIA H100 (GPU-a)"
    (cpu,) = judge_gpus("cpu", {"gpus": gpus, "matching": [], "trouble": None})
    assert cpu.detail == "cpu; there is also NVIDIA H100, NVIDIA H100"


def test_threads_beyond_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert by_name(look_at_device(Settings(var_dir=tmp_path)))["processor"].level is Level.WARN


def test_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1000 kB\n")
    found = device_checks.memory_facts(tmp_path / "meminfo")
    assert found == (1_024_000, 2_048_000_000)
    monkeypatch.setattr(device_checks, "memory_facts", lambda: found)
    assert by_name(look_at_device(Settings(var_dir=tmp_path)))["memory"].level is Level.WARN


# --- disks, packages, the stack ---


def test_full_and_slow_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(var_dir=tmp_path)
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((10**8, Level.FAIL), (10**9, Level.WARN), (10**11, Level.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert by_name(look_at_disks(settings))["var folder"].level is level
    monkeypatch.setattr(disk_checks, "_write_once", lambda folder: 0.5)
    assert "500.0 ms" in by_name(look_at_disks(settings))["disk speed"].detail
    assert bad(look_at_disks(settings)) == {"disk speed": Level.WARN}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert by_name(look_at_disks(Settings(var_dir=tmp_path)))["var folder"].level is Level.FAIL


def test_versions_that_were_not_tested(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# c\nsqlalchemy==0.1\nno-such-package==1\nrq==3.0.0 ; x\n")
    assert pins(tmp_path / "constraints.txt") == {"sqlalchemy": "0.1", "no-such-package": "1", "rq": "3.0.0"}
    finding = by_name(look_at_versions(tmp_path / "constraints.txt"))["packages"]
    assert finding.level is Level.WARN
    assert "(tested: 0.1)" in finding.detail
    assert "no-such-package" not in finding.detail


def test_a_record_that_a_killed_supervisor_left(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid = int(gone.stdout)
    record = StackRecord(pid, "http://127.0.0.1:9", "unix:///x", "sqlite:///x", {"server": pid}, ready=True)
    record.save(tmp_path)
    finding = by_name(look_at_stack(Settings(var_dir=tmp_path)))["stack"]
    assert finding.level is Level.WARN
    assert "the next `bitbudget up` replaces it" in str(finding.cure)
    record = json.loads((tmp_path / "stack.json").read_text())
    (tmp_path / "stack.json").write_text(json.dumps(record | {"programs": {"worker": os.getpid()}}))
    assert "still run worker" in by_name(look_at_stack(Settings(var_dir=tmp_path)))["stack"].detail


def test_leftovers_of_killed_moves(tmp_path: Path) -> None:
    folder = tmp_path / "artefacts" / "compressions" / ".cmp_1.x.old"
    folder.mkdir(parents=True)
    assert "leftovers" not in by_name(look_at_stack(Settings(var_dir=tmp_path))), "a move that is going on"


def test_leftovers_of_an_hour_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results_db.gc.work.age_days", lambda path: 0.5)
    (tmp_path / "artefacts" / "compressions" / ".cmp_1.x.old").mkdir(parents=True)
    assert by_name(look_at_stack(Settings(var_dir=tmp_path)))["leftovers"].level is Level.WARN


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_running_stack_is_asked(stack: Any) -> None:
    settings = Settings(var_dir=stack.var_dir)
    findings = by_name([*look_at_stack(settings), *look_at_redis(settings), *look_at_database(settings)])
    assert bad(findings.values()) == {}
    assert findings["server"].detail.endswith("is ready")


def test_a_new_database_has_its_tables(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'var' / 'bitbudget.db'}")
    settings = Settings(var_dir=tmp_path / "var")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert by_name(look_at_database(settings))["schema"].level is Level.WARN
    upgrade(database)
    assert by_name(look_at_database(settings))["schema"].level is Level.OK
    database.dispose()
