"""A validate job whose worker is killed goes on with the layer that was under way, and ends the same."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress_core import CompressionConfig
from results_db.states import AttemptState, JobKind, JobState
from tests.worker.validations import RTN, WINDOWS, Stored, recorded, store, undisturbed

__all__ = ["store"]  # a fixture


# what is new here is in the worker and its folders; leases are lost on both databases in test_worker
@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_kill_9_in_mid_validation(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, text_path: Path, store: Callable[..., Stored]
) -> None:
    """Hidden states in mapped files: the next attempt begins with the layer that was under way, and ends the same."""
    slow = CompressionConfig(b_q=2, rank=8, codebook="trellis", iterations=4, states=4096)
    given = [store(lambda key, q=q: slow if key.projection in ("up", "down") else q) for q in (RTN[3], RTN[4])]
    params = {
        "model_id": model_id,
        "name": "choice",
        "allocation_ids": [g.id for g in given],
        "text": {"kind": "file", "path": str(text_path)},
        "windows": WINDOWS,
    }
    worker = service.worker()
    job_id = service.submit(JobKind.VALIDATE, params)
    work = service.folder / "work" / "validations"

    def at() -> int:
        """Layers that are behind it."""
        for marker in work.glob("*/states.json"):
            return int(json.loads(marker.read_text())["layer_idx"])
        return 0

    service.wait(lambda: list(work.glob("*/states.json")) or service.job(job_id).error, "a workspace")
    deadline = time.monotonic() + 60
    while at() < 1 and time.monotonic() < deadline:
        time.sleep(0.002)
    horse = service.horse(worker)
    worker.kill()
    os.kill(horse, signal.SIGKILL)
    worker.wait()
    assert at() == 1, "the validation was too quick to be disturbed"
    service.worker()
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert [attempt.state for attempt in service.attempts(job_id)] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert not [path for path in work.iterdir() if path.is_dir()]
    _, items, windows = recorded(service, job.result["validation_id"])
    expected = undisturbed(service, calibration_id, tiny_model, text_path, given)
    assert [[loss for _, loss, _ in found] for found in windows] == [
        list(found.nll) for found in (expected.original, *expected.losses)
    ]
    assert [[kl for kl, _, _ in found] for found in windows[1:]] == expected.kl_AN.tolist()
    assert [item.kl for item in items[1:]] == pytest.approx(list(expected.kl_A), rel=1e-12)
