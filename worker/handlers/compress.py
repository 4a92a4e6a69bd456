"""compress: a packed model from an allocation. Equal items on the same calibration are packed once.

Work goes on in a workspace that survives a kill: another attempt goes on after the last layer that is done.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixKey
from compress_core.checkpoint import Checkpoint
from compress_core.pack.layout import fixed_bytes, stored_bytes
from compress_core.pack.writer import write_packed_model
from results_db.errors import NotFound
from results_db.ids import new_id
from results_db.params import CompressParams
from results_db.recording import find_compression, move_artefact, record_compression
from results_db.tables import Allocation, AllocationItem, Artefact, Calibration, Compression
from worker.context import JobContext
from worker.errors import MissingInput
from worker.inputs import content_hash, get_calibration, open_calibration, open_model

log = logging.getLogger(__name__)

KIND = "compressions"


def run(params: CompressParams, context: JobContext) -> dict[str, Any]:
    """Result: {compression_id, actual_bytes, reused}."""
    model, checkpoint = open_model(context, params.model_id)
    allocation, items = context.recorder.read(lambda session: get_allocation(session, params))
    head = None if params.head is None else CompressionConfig.from_dict(params.head)
    context.progress.begin(len(items) + (head is not None), message="compressing")
    calibration = get_calibration(context, model, params.calibration_id or allocation.calibration_id)
    key: dict[str, Any] = {
        "model_id": model.id,
        "calibration_id": calibration.id,
        "content_hash": _content_hash(allocation, head),
        "numerics_version": NUMERICS_VERSION,
        "device_kind": context.device.kind,
    }
    known, artefact = _find(context, key)
    if known is None or not _holds(context, artefact):
        workspace = context.store.workspace(KIND, json.dumps(key, sort_keys=True))
        # another worker may have made it while this one waited for the workspace
        known, artefact = _find(context, key)
        if _holds(context, artefact):
            context.store.workspaces.close(workspace)
    if known is not None and _holds(context, artefact):
        return {"compression_id": known.id, "actual_bytes": known.actual_bytes, "reused": True}
    if params.head is None:
        expected = allocation.matrix_bytes + allocation.fixed_bytes
    else:
        expected = allocation.matrix_bytes + fixed_bytes(checkpoint, head=head)
    began = time.perf_counter()
    folder = _pack(context, checkpoint, calibration, items, head, workspace, expected)
    seconds = time.perf_counter() - began
    actual = stored_bytes(folder) or 0
    if actual != expected:
        log.error("allocation %s promised %d bytes, the packed model has %d", allocation.id, expected, actual)
    compression_id = new_id("cmp") if known is None else known.id
    uri = context.store.publish(folder, KIND, compression_id)
    context.store.workspaces.close(workspace)
    if artefact is not None:
        lost_id = artefact.id
        context.recorder.write(lambda session, claim: move_artefact(session, claim, lost_id, uri=uri, nbytes=actual))
        return {"compression_id": compression_id, "actual_bytes": actual, "reused": False}
    recorded_id = context.recorder.write(
        lambda session, claim: record_compression(
            session,
            claim,
            uri=uri,
            nbytes=actual,
            **key,
            id=compression_id,
            allocation_id=allocation.id,
            expected_bytes=expected,
            actual_bytes=actual,
            seconds=seconds,
        )
    )
    return {"compression_id": recorded_id, "actual_bytes": actual, "reused": False}


def _pack(
    context: JobContext,
    checkpoint: Checkpoint,
    calibration: Calibration,
    items: Mapping[MatrixKey, CompressionConfig],
    head: CompressionConfig | None,
    workspace: Path,
    expected: int,
) -> Path:
    """The finished model below ``workspace``: what an earlier attempt left there is gone on with."""
    folder = workspace / "model"
    if folder.exists():
        if stored_bytes(folder) == expected:  # that attempt was killed before it could publish it
            return folder
        shutil.rmtree(folder)
    hessians = open_calibration(context, calibration, checkpoint)
    write_packed_model(
        checkpoint,
        hessians,
        items,
        folder,
        head=head,
        device=context.device.torch_name,
        work_dir=workspace / "work",
        # what was done before cost this attempt nothing: it must not count in the time to go
        on_resume=lambda done, total: context.progress.begin(
            total, reused=done, message=f"{done} of {total} matrices were compressed before"
        ),
        progress=context.progress,
    )
    hessians.close()
    return folder


def _content_hash(allocation: Allocation, head: CompressionConfig | None) -> str:
    """Equal items, and an equal head where it is compressed, are the same packed model."""
    if head is None:
        return allocation.content_hash
    return content_hash({"items": allocation.content_hash, "head": head.config_hash})


def _find(context: JobContext, key: dict[str, Any]) -> tuple[Compression | None, Artefact | None]:
    def find(session: Session) -> tuple[Compression | None, Artefact | None]:
        found = find_compression(session, **key)
        return found, None if found is None else session.get_one(Artefact, found.artefact_id)

    return context.recorder.read(find)


def _holds(context: JobContext, artefact: Artefact | None) -> bool:
    return artefact is not None and context.store.holds(artefact.uri, artefact.nbytes)


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
