"""A calibrate job whose worker is killed goes on with the layer that was under way, to the same bytes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from compress_core.calibrate.calibration import Calibration as CalibrationFolder
from compress_core.calibrate.layer_file import layer_path
from compress_core.calibrate.recipe import read_tokens
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Artefact, Calibration

# what is new here is in the worker and its folders; leases are lost on both databases in test_worker
pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True)

#: of the deep model
N_LAYERS = 4
N_WINDOWS = 500


@pytest.fixture
def deep_id(service: Any, deep_model: Path) -> str:
    return str(service.add_model(deep_model))


@pytest.fixture(scope="module")
def long_text(text_path: Path) -> Path:
    """Enough text that a layer takes a while."""
    path = text_path.with_name("long.txt")
    documents = (f"{n} and {n + 1} are {2 * n + 1}, {n} times {n} is {n * n}. " * 3 for n in range(1500))
    path.write_text("<|endoftext|>".join(documents))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def artefact(service: Any, calibration_id: str) -> Artefact:
    with service.database.read() as session:
        return session.get_one(Artefact, session.get_one(Calibration, calibration_id).artefact_id)


def test_kill_9_in_mid_calibration(
    service: Any, deep_id: str, deep_model: Path, long_text: Path, tmp_path: Path
) -> None:
    """Hidden states in mapped files: the next attempt begins with the layer that was under way."""
    service.start_worker(BITBUDGET_HIDDEN_RAM_GB="0")
    text = {"kind": "file", "path": str(long_text)}
    params = {"model_id": deep_id, "text": text, "windows": {"length": 64, "count": N_WINDOWS}}
    job_id = service.submit(JobKind.CALIBRATE, params)
    work = service.folder / "work" / "calibrations"
    service.wait(lambda: list(work.glob("*/scratch")), "a workspace")
    (folder,) = (path for path in work.iterdir() if path.is_dir())
    deadline = time.monotonic() + 60
    while not layer_path(folder, 0).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    worker = service.worker()
    horse = service.horse(worker)
    worker.kill()
    os.kill(horse, signal.SIGKILL)
    worker.wait()
    done = [layer_path(folder, layer_idx).exists() for layer_idx in range(N_LAYERS)]
    assert done[0], "the first layer never came"
    assert not done[-1], "the calibration was too quick to be disturbed"
    service.start_worker(BITBUDGET_HIDDEN_RAM_GB="0")
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert [attempt.state for attempt in service.attempts(job_id)] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    # the units of what was left, not of the whole; a batch of a layer whose H is gathered is two
    n_batches = -(-N_WINDOWS // (4096 // 64))
    assert job.progress["total"] in {2 * n_batches * n + extra for n in range(1, N_LAYERS) for extra in (0, n_batches)}
    assert job.progress["done"] == job.progress["total"]
    assert not folder.exists()
    # the same without a fault, and with the states in memory
    made = Path(artefact(service, job.result["calibration_id"]).uri)
    checkpoint = open_checkpoint(deep_model)
    info = CalibrationFolder.open(made, checkpoint).info
    recipe = {"source": info.source, "seed": info.seed, "batch_tokens": info.batch_tokens}
    calibrate_model(checkpoint, read_tokens(made, info), tmp_path / "h", **recipe)
    assert files(made) == files(tmp_path / "h")
