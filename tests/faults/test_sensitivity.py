"""A sensitivity job whose horse is killed in mid-method: every row once, and the numbers of a job left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from results_db.states import TERMINAL, AttemptState, JobKind, JobState
from results_db.tables import SensitivityAnchor

#: matrices and layers of the tiny model
N_MATRICES, N_LAYERS = 14, 2
ANCHORS = [
    {"b_q": 2, "rank": 0, "codebook": "scalar"},
    {"b_q": 2, "rank": 4, "codebook": "scalar", "factor_bits": 8, "iterations": 1},
]


def anchors(service: Any, job_id: str) -> list[SensitivityAnchor]:
    with service.database.read() as session:
        return list(session.scalars(select(SensitivityAnchor).filter_by(job_id=job_id)))


def key(row: SensitivityAnchor) -> tuple[str, int, str, str]:
    return (row.method, row.layer_idx, row.projection, row.anchor_config_hash)


def test_kill_9_of_the_horse_costs_no_row(service: Any, model_id: str, calibration_id: str, text_path: Path) -> None:
    """In mid-method: the rows of the attempts together are those of a job that was left alone."""
    methods = ["kl_anchor", "fisher_output", "higgs"]
    params = {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "anchors": ANCHORS,
        "text": {"kind": "file", "path": str(text_path)},
        "methods": methods,
        "windows": {"length": 16, "count": 6},
    }
    job_id = service.submit(JobKind.SENSITIVITY, params)

    def count() -> int:
        with service.database.read() as session:
            of_job = SensitivityAnchor.job_id == job_id
            return int(session.scalar(select(func.count()).select_from(SensitivityAnchor).where(of_job)) or 0)

    begun = 2 * N_MATRICES + 2 * N_LAYERS + 1  # the second method has recorded something
    service.wait(lambda: count() >= begun or service.job(job_id).state in TERMINAL, "sensitivities")
    assert service.job(job_id).state == JobState.RUNNING, service.job(job_id).error or "too quick to be disturbed"
    os.kill(service.horse(service.worker()), signal.SIGKILL)
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert [attempt.state for attempt in service.attempts(job_id)] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert job.result["reused"] >= begun
    assert job.result["recorded"] + job.result["reused"] == 3 * 2 * N_MATRICES + 2 * N_LAYERS == count()
    # and they are the numbers of a job that nobody disturbs
    killed = {key(row): row.kl_per_sequence for row in anchors(service, job_id)}
    with service.database.write() as session:
        for row in session.scalars(select(SensitivityAnchor).filter_by(job_id=job_id)):
            session.delete(row)
    alone_id = service.submit(JobKind.SENSITIVITY, params)
    assert service.finish(alone_id).state == JobState.SUCCEEDED
    assert {key(row): row.kl_per_sequence for row in anchors(service, alone_id)} == killed
