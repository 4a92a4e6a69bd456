"""Calibrate jobs from an archive of statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from compress_core.calibrate.calibration import Calibration as CalibrationFolder
from compress_core.calibrate.layer_file import layer_path
from compress_core.checkpoint import open_checkpoint
from results_db.states import JobKind, JobState
from results_db.tables import Artefact, Calibration

# what is new here is in the worker and its folders; tests of other kinds of jobs run on both databases
pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True)


def artefact(service: Any, calibration_id: str) -> Artefact:
    with service.database.read() as session:
        return session.get_one(Artefact, session.get_one(Calibration, calibration_id).artefact_id)


def test_import_from_an_archive(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, text_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model)
    stored = CalibrationFolder.open(artefact(service, calibration_id).uri, checkpoint)
    arrays = {spec.module_name: stored.hessian(spec.key).numpy() for spec in checkpoint.matrices()}
    path = text_path.with_name("statistics.npz")
    np.savez(path, **arrays, n_tokens=np.array(512))
    params = {"model_id": model_id, "npz": str(path)}
    job = service.finish(service.submit(JobKind.CALIBRATE, params))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result["unused"] == ["n_tokens"]
    assert (len(job.result["found"]), job.result["missing"]) == (8, [])
    imported = artefact(service, job.result["calibration_id"])
    for layer_idx in (0, 1):
        theirs, ours = (
            load_file(layer_path(Path(uri), layer_idx)) for uri in (imported.uri, artefact(service, calibration_id).uri)
        )
        assert theirs.keys() == ours.keys()
        assert all((theirs[name] == ours[name]).all() for name in ours)
    report = json.loads((Path(imported.uri) / "calibration.json").read_text())["report"]["import"]
    assert report == {name: job.result[name] for name in ("found", "diagonal_only", "missing", "unused")}
    assert service.finish(service.submit(JobKind.CALIBRATE, params)).result["reused"] is True
    with service.database.read() as session:
        row = session.get_one(Calibration, job.result["calibration_id"])
    assert (row.n_tokens, row.keeps, row.text["kind"]) == (0, "hessians", "npz")


def test_an_archive_that_lacks_inputs(service: Any, model_id: str, text_path: Path) -> None:
    path = text_path.with_name("poor.npz")
    np.savez(path, **{"0.o": np.eye(48), "1.down": np.ones(88)})
    job = service.finish(service.submit(JobKind.CALIBRATE, {"model_id": model_id, "npz": str(path)}))
    assert job.state == JobState.FAILED
    assert job.error["code"] == "invalid-calibration"
    assert "no statistics for 6 inputs of the model: 0.qkv" in job.error["message"]
    filled = service.finish(
        service.submit(JobKind.CALIBRATE, {"model_id": model_id, "npz": str(path), "npz_fill": "identity"})
    )
    assert filled.state == JobState.SUCCEEDED, filled.error
    assert filled.result["diagonal_only"] == ["1.down"]
    assert len(filled.result["missing"]) == 6
