"""Two hosts, each with a var folder of its own, and one object store between them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from compress_core.checkpoint import open_checkpoint
from compress_core.config import CompressionConfig
from compress_core.pack.reader import PackedModel
from results_db.states import JobKind, JobState
from results_db.tables import Artefact
from worker.artefacts import ArtefactStore

pytestmark = pytest.mark.parametrize("service", ["sqlite"], indirect=True)

CONFIG = CompressionConfig(b_q=4, codebook="rtn")


@pytest.fixture
def store_environment(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What both hosts are told: an S3 API, and to keep artefacts there."""
    monkeypatch.setenv("BITBUDGET_ARTEFACTS_URL", "s3://box/bitbudget")
    return s3 | {"BITBUDGET_ARTEFACTS_URL": "s3://box/bitbudget"}


def _run(service: Any, kind: JobKind, params: dict[str, Any]) -> dict[str, Any]:
    job = service.finish(service.submit(kind, params))
    assert job.state == JobState.SUCCEEDED, job.error
    return dict(job.result)


def test_one_host_calibrates_and_the_other_sweeps_and_compresses(
    service: Any, model_id: str, tiny_model: Path, text_path: Path, tmp_path: Path, store_environment: dict[str, str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = service.start_worker(**store_environment, BITBUDGET_VAR_DIR=str(one))
    calibration_id = service.calibrate(model_id, text_path)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    service.start_worker(**store_environment, BITBUDGET_VAR_DIR=str(two))
    shared = {"model_id": model_id, "calibration_id": calibration_id}
    swept = _run(service, JobKind.SWEEP, shared | {"configs": [CONFIG.to_dict()]})
    assert swept["recorded"] == len(open_checkpoint(tiny_model).matrices())
    allocation_id = service.allocate(model_id, calibration_id, tiny_model, lambda _: CONFIG)
    made = _run(service, JobKind.COMPRESS, shared | {"allocation_id": allocation_id})
    compression_id = made["compression_id"]

    # rows name the store, not a host's folder; both hosts hold copies, and nothing unfinished is left
    with service.database.read() as session:
        rows = {row.kind: row.uri for row in session.scalars(select(Artefact))}
    assert rows == {
        "calibration": f"s3://box/bitbudget/calibrations/{calibration_id}",
        "compression": f"s3://box/bitbudget/compressions/{compression_id}",
    }
    for var in (one, two):
        assert not list((var / "work").rglob("*.safetensors"))
        assert not (var / "artefacts").exists()
    third = ArtefactStore(store_environment["BITBUDGET_ARTEFACTS_URL"], tmp_path / "three")
    assert third.holds(rows["compression"], made["actual_bytes"])
    PackedModel.open(third.fetch(rows["compression"]))
    assert store_environment["AWS_SECRET_ACCESS_KEY"] not in service.logs()

    # a calibration that another host keeps in a folder of its own
    elsewhere = f"/host-one/artefacts/calibrations/{calibration_id}"
    with service.database.write() as session:
        session.execute(update(Artefact).where(Artefact.kind == "calibration").values(uri=elsewhere))
    other = CONFIG.to_dict() | {"b_q": 3}
    job = service.finish(service.submit(JobKind.SWEEP, shared | {"configs": [other]}))
    assert job.state == JobState.FAILED
    assert job.error["code"] == "missing-input"
    for words in (os.uname().nodename, elsewhere, "BITBUDGET_ARTEFACTS_URL"):
        assert words in job.error["message"]
