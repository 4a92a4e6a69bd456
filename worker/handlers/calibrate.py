"""calibrate: H of every distinct input of a model. The same request a second time reuses the file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from compress_core.calibrate.run import calibrate_model
from compress_core.version import NUMERICS_VERSION
from results_db.ids import new_id
from results_db.params import CalibrateParams
from results_db.recording import find_calibration, move_artefact, record_calibration
from results_db.tables import Artefact
from worker.context import JobContext
from worker.inputs import content_hash, draw_windows, open_model, text_source

#: dtype of the activations
_DTYPE = "float32"


def run(params: CalibrateParams, context: JobContext) -> dict[str, Any]:
    """Result: {calibration_id, reused}."""
    model, checkpoint = open_model(context, params.model_id)
    context.progress.begin(checkpoint.n_layers, message="reading the text")
    tokens = draw_windows(context, checkpoint, params.text, "calibrate", params.windows)
    key = content_hash(
        {
            "model": checkpoint.fingerprint,
            "text": params.text.model_dump(),
            "tokens": tokens.sha256,
            "windows": params.windows.model_dump(),
            "dtype": _DTYPE,
            "numerics": NUMERICS_VERSION,
            "device": context.device.kind,
        }
    )
    known = context.recorder.read(lambda session: find_calibration(session, key))
    if known is not None:
        artefact = context.recorder.read(lambda session: session.get_one(Artefact, known.artefact_id))
        if _is_whole(artefact):
            return {"calibration_id": known.id, "reused": True}
    calibration_id = new_id("cal")
    path = context.artefacts / "calibrations" / calibration_id / "calibration.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    calibrate_model(
        checkpoint,
        tokens,
        path,
        source=str(text_source(context, params.text).to_dict()),
        seed=params.windows.seed,
        device=context.device.torch_name,
        dtype=_DTYPE,
        batch_tokens=context.batch_tokens,
        progress=context.progress,
    )
    seconds = time.perf_counter() - began
    nbytes = path.stat().st_size
    if known is not None:
        context.recorder.write(
            lambda session, claim: move_artefact(session, claim, known.artefact_id, uri=str(path), nbytes=nbytes)
        )
        return {"calibration_id": known.id, "reused": False}
    recorded_id = context.recorder.write(
        lambda session, claim: record_calibration(
            session,
            claim,
            uri=str(path),
            nbytes=nbytes,
            id=calibration_id,
            model_id=model.id,
            content_hash=key,
            n_samples=tokens.n_windows,
            sample_length=tokens.length,
            n_tokens=tokens.n_tokens,
            seed=params.windows.seed,
            token_hash=tokens.sha256,
            text=params.text.model_dump(exclude_none=True),
            numerics_version=NUMERICS_VERSION,
            device_kind=context.device.kind,
            seconds=seconds,
        )
    )
    return {"calibration_id": recorded_id, "reused": False}


def _is_whole(artefact: Artefact) -> bool:
    path = Path(artefact.uri)
    return path.exists() and path.stat().st_size == artefact.nbytes
