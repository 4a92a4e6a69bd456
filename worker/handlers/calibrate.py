"""calibrate: H of every distinct input of a model. The same request a second time reuses the artefact.

Work goes on in a workspace that survives a kill: another attempt finds the layers that are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.orm import Session

from compress_core.calibrate.archive import Archive
from compress_core.calibrate.archive_names import match_arrays
from compress_core.calibrate.imported import import_calibration
from compress_core.calibrate.run import calibrate_model, keep_tokens
from compress_core.checkpoint import Checkpoint
from compress_core.text.tokens import TokenWindows
from compress_core.version import NUMERICS_VERSION
from results_db.ids import new_id
from results_db.params import CalibrateParams
from results_db.recording import find_calibration, move_artefact, record_calibration
from results_db.tables import Artefact, Calibration, Model
from worker.context import JobContext
from worker.files import artefact_bytes
from worker.inputs import content_hash, draw_windows, hidden_ram_bytes, open_model, text_source

KIND = "calibrations"


def run(params: CalibrateParams, context: JobContext) -> dict[str, Any]:
    """Result: {calibration_id, reused}, and the report of an import: {found, diagonal_only, missing, unused}."""
    model, checkpoint = open_model(context, params.model_id)
    if params.npz is not None:
        return _import(params, context, model, checkpoint)
    context.progress.begin(checkpoint.n_layers, message="reading the text")
    tokens = draw_windows(context, checkpoint, params.text, "calibrate", params.windows)
    key = content_hash(
        {
            "model": checkpoint.fingerprint,
            "text": params.text.model_dump(),
            "tokens": tokens.sha256,
            "windows": params.windows.model_dump(),
            "dtype": params.dtype,
            "keep": params.keep,
            "numerics": NUMERICS_VERSION,
            "device": context.device.kind,
        }
    )
    row = {
        "model_id": model.id,
        "content_hash": key,
        "n_samples": tokens.n_windows,
        "sample_length": tokens.length,
        "n_tokens": tokens.n_tokens,
        "seed": params.windows.seed,
        "token_hash": tokens.sha256,
        "text": params.text.model_dump(exclude_none=True),
        "numerics_version": NUMERICS_VERSION,
        "device_kind": context.device.kind,
        "keeps": params.keep,
    }
    # layers are only gone on with under the same batches and the same torch: their bits depend on both
    folder = f"{key} {context.batch_tokens} {torch.__version__}"
    return made_once(context, row, folder, lambda path: _compute(params, context, checkpoint, tokens, path))


def _import(params: CalibrateParams, context: JobContext, model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    context.progress.begin(checkpoint.n_layers, message="reading the archive")
    archive = Archive.open(context.settings.resolve_path(params.npz or ""))
    match = match_arrays(archive.arrays, checkpoint.matrices())
    if params.npz_fill is None:
        match.check_complete()
    sha256 = archive.sha256
    key = content_hash(
        {
            "model": checkpoint.fingerprint,
            "npz": sha256,
            "npz_fill": params.npz_fill,
            "numerics": NUMERICS_VERSION,
        }
    )
    row = {
        "model_id": model.id,
        "content_hash": key,
        "n_samples": 0,
        "sample_length": 0,
        "n_tokens": 0,
        "seed": 0,
        "token_hash": sha256,
        "text": {"kind": "npz", "path": str(archive.path), "fill": params.npz_fill},
        "numerics_version": NUMERICS_VERSION,
        "device_kind": "cpu",
        "keeps": params.keep,
    }

    def make(folder: Path) -> None:
        import_calibration(checkpoint, archive, folder, fill=params.npz_fill, progress=context.progress)

    return made_once(context, row, f"{key} {torch.__version__}", make) | match.report()


def made_once(context: JobContext, row: dict[str, Any], workspace: str, make: Callable[[Path], None]) -> dict[str, Any]:
    """The calibration that this row describes: a known one whose artefact is whole, or a new one.

    Args:
        row: columns of ``calibrations``; ``content_hash`` says what is the same calibration.
        workspace: names the folder that ``make`` fills; a killed attempt's is found again.
    """

    def known() -> tuple[Calibration | None, Artefact | None]:
        def find(session: Session) -> tuple[Calibration | None, Artefact | None]:
            found = find_calibration(session, row["content_hash"])
            return found, None if found is None else session.get_one(Artefact, found.artefact_id)

        return context.recorder.read(find)

    def is_whole(artefact: Artefact | None) -> bool:
        return artefact is not None and context.store.holds(artefact.uri, artefact.nbytes)

    calibration, artefact = known()
    if calibration is None or not is_whole(artefact):
        folder = context.store.workspace(KIND, workspace)
        # another worker may have made it while this one waited for the workspace
        calibration, artefact = known()
        if is_whole(artefact):
            context.store.workspaces.close(folder)
    if calibration is not None and is_whole(artefact):
        return {"calibration_id": calibration.id, "reused": True}
    calibration_id = new_id("cal") if calibration is None else calibration.id
    began = time.perf_counter()
    make(folder)
    seconds = time.perf_counter() - began
    nbytes = artefact_bytes(folder)
    uri = context.store.publish(folder, KIND, calibration_id)
    if artefact is not None:
        lost_id = artefact.id
        context.recorder.write(lambda session, claim: move_artefact(session, claim, lost_id, uri=uri, nbytes=nbytes))
        return {"calibration_id": calibration_id, "reused": False}
    recorded_id = context.recorder.write(
        lambda session, claim: record_calibration(
            session, claim, uri=uri, nbytes=nbytes, id=calibration_id, seconds=seconds, **row
        )
    )
    return {"calibration_id": recorded_id, "reused": False}


def _compute(
    params: CalibrateParams, context: JobContext, checkpoint: Checkpoint, tokens: TokenWindows, folder: Path
) -> None:
    recipe: dict[str, Any] = {
        "source": str(text_source(context, params.text).to_dict()),
        "seed": params.windows.seed,
        "device": context.device.torch_name,
        "dtype": params.dtype,
        "batch_tokens": context.batch_tokens,
    }
    if params.keep == "tokens":
        keep_tokens(checkpoint, tokens, folder, **recipe)
        context.progress(1, 1, "kept the tokens")
        return
    calibrate_model(
        checkpoint, tokens, folder, **recipe, ram_bytes=hidden_ram_bytes(context), progress=context.progress
    )
