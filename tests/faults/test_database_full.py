"""The disk with the SQLite file is full: nothing is lost, and everything goes on when there is space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from results_db.settings import Settings
from results_db.states import AttemptState
from server.app import create_app
from tests.faults.patient import PatientService
from tests.faults.small_disk import SmallDisk, disk
from tests.service import Service
from tests.sweeps import N_CONFIGS, assert_complete, start_sweep, states

__all__ = ["disk"]  # a fixture


@pytest.fixture(scope="module")
def service(
    disk: SmallDisk,
    sqlite_template: Path,
    redis_server_url: str,
    repo: Path,
    tiny_model: Path,
    text_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service whose database lies on the small disk."""
    shutil.copy(sqlite_template, disk.path / "bitbudget.db")
    url = f"sqlite:///{disk.path / 'bitbudget.db'}"
    folder = tmp_path_factory.mktemp("var")
    service = PatientService(url, redis_server_url, folder, repo, [tiny_model.parent.parent, text_path.parent])
    service.start_worker(BITBUDGET_LEASE_S="45", BITBUDGET_HEARTBEAT_S="1")
    yield service
    service.close()


def test_the_database_s_disk_is_full_for_a_while(
    service: Any, disk: SmallDisk, model_id: str, calibration_id: str, grid: Any
) -> None:
    job_id = start_sweep(service, model_id, calibration_id, grid(61, N_CONFIGS))
    disk.fill()
    service.wait(lambda: "a write failed and is tried again" in service.logs(), "a write that fails")
    assert "database or disk is full" in service.logs()
    disk.free()
    assert_complete(service, job_id)
    assert states(service, job_id) == [AttemptState.SUCCEEDED]


def test_nothing_is_accepted_that_cannot_be_kept(service: Any, disk: SmallDisk) -> None:
    settings = Settings(
        database_url=service.database.url.render_as_string(),
        redis_url=service.environment["BITBUDGET_REDIS_URL"],
        var_dir=service.folder,
    )
    with TestClient(create_app(settings, run_loop=False), base_url="http://127.0.0.1") as client:
        disk.fill()
        try:
            answers = [client.post("/api/v1/probes", json={}) for _ in range(20)]
        finally:
            disk.free()
        # what still fits into the pages that SQLite has may be accepted; whatever was, is there
        assert {answer.status_code for answer in answers} <= {202, 503}
        refused = [answer.json()["type"] for answer in answers if answer.status_code == 503]
        assert refused
        assert set(refused) == {"urn:bitbudget:problem:database-unavailable"}
        accepted = {answer.json()["id"] for answer in answers if answer.status_code == 202}
        known = {job["id"] for job in client.get("/api/v1/jobs?kind=probe").json()["items"]}
        assert known == accepted
        later = client.post("/api/v1/probes", json={})
        assert later.status_code == 202
