"""A compress job whose horse is killed goes on after the last finished layer, to the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from compress_core.calibrate.calibration import Calibration as CalibrationFolder
from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey
from compress_core.pack.layout import FILE_NAME
from compress_core.pack.writer import write_packed_model
from results_db.states import AttemptState, JobKind, JobState
from results_db.tables import Artefact, Calibration, Compression

pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True)

QUICK = CompressionConfig(b_q=4, codebook="rtn")
#: long enough to be killed in
SLOW = CompressionConfig(b_q=4, rank=12, codebook="scalar", iterations=100)


@pytest.fixture
def items(tiny_model: Path) -> dict[MatrixKey, CompressionConfig]:
    """A quick first layer and a slow second one."""
    return {spec.key: (QUICK, SLOW)[spec.key.layer_idx] for spec in open_checkpoint(tiny_model).matrices()}


@pytest.fixture
def allocation_id(
    service: Any, model_id: str, calibration_id: str, tiny_model: Path, items: dict[MatrixKey, CompressionConfig]
) -> str:
    return str(service.allocate(model_id, calibration_id, tiny_model, items.__getitem__))


def test_kill_9_in_mid_compression(
    service: Any,
    model_id: str,
    calibration_id: str,
    allocation_id: str,
    items: dict[MatrixKey, CompressionConfig],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    params = {"model_id": model_id, "calibration_id": calibration_id, "allocation_id": allocation_id}
    job_id = service.submit(JobKind.COMPRESS, params)
    work = service.folder / "work" / "compressions"
    service.wait(lambda: list(work.glob("*/work/*/.layer-00000.safetensors")), "the first layer")
    (layer,) = work.glob("*/work/*/.layer-00000.safetensors")
    written = layer.stat().st_mtime_ns
    os.kill(service.horse(service.worker()), signal.SIGKILL)
    service.wait(lambda: service.attempts(job_id)[0].state == AttemptState.LOST, "a lost attempt")
    assert layer.stat().st_mtime_ns == written
    job = service.finish(job_id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert [attempt.state for attempt in service.attempts(job_id)] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert job.result["reused"] is False
    assert job.progress["done"] == job.progress["total"] == 14
    assert list(work.rglob("*.safetensors")) == []
    with service.database.read() as session:
        compression = session.get_one(Compression, job.result["compression_id"])
        folder = Path(session.get_one(Artefact, compression.artefact_id).uri)
        calibration = session.get_one(Calibration, calibration_id)
        hessians = session.scalar(select(Artefact.uri).where(Artefact.id == calibration.artefact_id))
    assert compression.actual_bytes == compression.expected_bytes
    checkpoint = open_checkpoint(tiny_model)
    undisturbed = CalibrationFolder.open(hessians, checkpoint)
    write_packed_model(checkpoint, undisturbed, items, tmp_path / "undisturbed")
    assert (folder / FILE_NAME).read_bytes() == (tmp_path / "undisturbed" / FILE_NAME).read_bytes()
    again = service.finish(service.submit(JobKind.COMPRESS, params))
    assert again.result == job.result | {"reused": True}
