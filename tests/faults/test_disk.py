"""The disk of artefacts or of unfinished work is full: nothing half is left, path and cure are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results_db.queue.submit import retry_job
from results_db.states import AttemptState, JobKind, JobState
from tests.faults.small_disk import SmallDisk, disk
from tests.sweeps import states

__all__ = ["disk"]  # a fixture

FAILED, SUCCEEDED = AttemptState.FAILED, AttemptState.SUCCEEDED


@pytest.mark.parametrize("variable", ["BITBUDGET_ARTEFACTS_URL", "BITBUDGET_VAR_DIR"])
def test_a_calibration_that_does_not_fit(
    service: Any,
    disk: SmallDisk,
    worker_with: Callable[..., None],
    model_id: str,
    text_path: Path,
    variable: str,
) -> None:
    """The store alone is full, or the whole folder of the worker."""
    folder = disk.path / service.database.url.get_backend_name() / variable
    worker_with(**{variable: str(folder)})
    text = {"kind": "file", "path": str(text_path)}
    seed = len(variable)
    params = {"model_id": model_id, "text": text, "windows": {"length": 32, "count": 16, "seed": seed}}
    disk.fill()
    try:
        job = service.finish(service.submit(JobKind.CALIBRATE, params))
    finally:
        disk.free()
    assert (job.state, job.error["code"]) == (JobState.FAILED, "disk-full"), job.error
    assert str(folder) in job.error["message"]
    assert "free some space" in job.error["message"]
    store = folder if variable == "BITBUDGET_ARTEFACTS_URL" else folder / "artefacts"
    assert [path for path in store.rglob("*") if path.is_file()] == []
    with service.database.write() as session:
        retry_job(session, job.id)
    job = service.finish(job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert states(service, job.id) == [FAILED, SUCCEEDED]
    assert len(list((store / "calibrations").iterdir())) == 1
