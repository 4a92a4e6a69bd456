"""compress: a packed model from an allocation. Equal items on the same calibration are packed once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixKey
from compress_core.pack.layout import FILE_NAME
from compress_core.pack.writer import write_packed_model
from results_db.errors import NotFound
from results_db.ids import new_id
from results_db.params import CompressParams
from results_db.recording import find_compression, move_artefact, record_compression
from results_db.tables import Allocation, AllocationItem, Artefact
from worker.context import JobContext
from worker.errors import MissingInput
from worker.inputs import get_calibration, open_calibration, open_model

log = logging.getLogger(__name__)


def run(params: CompressParams, context: JobContext) -> dict[str, Any]:
    """Result: {compression_id, actual_bytes, reused}."""
    model, checkpoint = open_model(context, params.model_id)
    allocation, items = context.recorder.read(lambda session: get_allocation(session, params))
    context.progress.begin(len(items), message="compressing")
    calibration = get_calibration(context, model, params.calibration_id or allocation.calibration_id)
    key: dict[str, Any] = {
        "model_id": model.id,
        "calibration_id": calibration.id,
        "content_hash": allocation.content_hash,
        "numerics_version": NUMERICS_VERSION,
        "device_kind": context.device.kind,
    }
    known = context.recorder.read(lambda session: find_compression(session, **key))
    if known is not None:
        artefact = context.recorder.read(lambda session: session.get_one(Artefact, known.artefact_id))
        if is_whole(Path(artefact.uri), known.actual_bytes):
            return {"compression_id": known.id, "actual_bytes": known.actual_bytes, "reused": True}
    hessians = open_calibration(context, calibration, checkpoint)
    compression_id = new_id("cmp")
    path = context.artefacts / "compressions" / compression_id
    began = time.perf_counter()
    report = write_packed_model(
        checkpoint, hessians, items, path, device=context.device.torch_name, progress=context.progress
    )
    seconds = time.perf_counter() - began
    expected = allocation.matrix_bytes + allocation.fixed_bytes
    if report.actual_bytes != expected:
        log.error(
            "allocation %s promised %d bytes, the packed model has %d", allocation.id, expected, report.actual_bytes
        )
    artefact_values: dict[str, Any] = {"uri": str(path), "nbytes": report.actual_bytes}
    if known is not None:
        context.recorder.write(
            lambda session, claim: move_artefact(session, claim, known.artefact_id, **artefact_values)
        )
        return {"compression_id": known.id, "actual_bytes": report.actual_bytes, "reused": False}
    recorded_id = context.recorder.write(
        lambda session, claim: record_compression(
            session,
            claim,
            **artefact_values,
            **key,
            id=compression_id,
            allocation_id=allocation.id,
            expected_bytes=expected,
            actual_bytes=report.actual_bytes,
            seconds=seconds,
        )
    )
    return {"compression_id": recorded_id, "actual_bytes": report.actual_bytes, "reused": False}


def get_allocation(session: Session, params: CompressParams) -> tuple[Allocation, dict[MatrixKey, CompressionConfig]]:
    """The allocation and its config for each matrix.

    Raises:
        MissingInput: no allocation was named, or it belongs to another model.
        NotFound: there is none of that id.
    """
    if params.allocation_id is None:
        raise MissingInput("a compress job needs an allocation: make one first (uniform is one too)")
    allocation = session.get(Allocation, params.allocation_id)
    if allocation is None:
        raise NotFound("allocation", params.allocation_id)
    if allocation.model_id != params.model_id:
        raise MissingInput(
            f"allocation {allocation.id} belongs to model {allocation.model_id}, not to {params.model_id}"
        )
    rows = session.scalars(select(AllocationItem).where(AllocationItem.allocation_id == allocation.id)).all()
    items = {
        MatrixKey(row.layer_idx, row.projection, row.expert_idx): CompressionConfig.from_dict(row.config)
        for row in rows
    }
    return allocation, items


def is_whole(folder: Path, nbytes: int) -> bool:
    """Whether a packed model lies there with all its bytes."""
    file = folder / FILE_NAME
    return file.exists() and file.stat().st_size == nbytes
