"""sensitivity: KL of the model's output when one matrix alone is compressed at an anchor config."""

from __future__ import annotations

import time
from typing import Any

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixKey
from compress_core.checkpoint import Checkpoint
from compress_core.errors import ConfigError
from compress_core.sensitivity.kl import kl_sensitivity
from compress_core.sensitivity.result import SensitivityResult
from results_db.params import SensitivityParams
from results_db.recording import record_sensitivity, recorded_sensitivities
from worker.context import JobContext
from worker.inputs import draw_windows, get_calibration, open_calibration, open_model

METHOD = "kl_anchor"


def run(params: SensitivityParams, context: JobContext) -> dict[str, Any]:
    """Result: {calibration_id, recorded, reused}."""
    model, checkpoint = open_model(context, params.model_id)
    calibration = get_calibration(context, model, params.calibration_id)
    anchors = [CompressionConfig.from_dict(values) for values in params.anchors]
    wanted = wanted_pairs(checkpoint, anchors)
    context.progress.begin(len(wanted), message="reading the text")
    tokens = draw_windows(context, checkpoint, params.text, "measure", params.windows)
    known = context.recorder.read(
        lambda session: recorded_sensitivities(
            session,
            model_id=model.id,
            calibration_id=calibration.id,
            method=METHOD,
            token_hash=tokens.sha256,
            numerics_version=NUMERICS_VERSION,
            device_kind=context.device.kind,
        )
    )
    done = {(MatrixKey(layer, projection, expert), anchor) for layer, projection, expert, anchor in known} & wanted
    context.progress.begin(len(wanted), reused=len(done), message=f"{len(done)} of {len(wanted)} are known")
    layers = {key.layer_idx for key, _ in wanted - done}
    missing = {spec.key for spec in checkpoint.matrices() if spec.key.layer_idx in layers}
    hessians = open_calibration(context, calibration, checkpoint, wanted=missing)
    recorded = 0
    began = time.perf_counter()

    def record(result: SensitivityResult) -> None:
        nonlocal recorded, began
        now = time.perf_counter()
        values = sensitivity_row(result) | {
            "model_id": model.id,
            "calibration_id": calibration.id,
            "method": METHOD,
            "n_tokens": result.n_sequences * tokens.length,
            "token_hash": tokens.sha256,
            "text": params.text.model_dump(exclude_none=True),
            "numerics_version": NUMERICS_VERSION,
            "device_kind": context.device.kind,
            "seconds": now - began,
        }
        began = now
        recorded += context.recorder.write(lambda session, claim: record_sensitivity(session, claim, **values))
        context.progress.check()

    kl_sensitivity(
        checkpoint,
        hessians,
        tokens,
        anchors,
        device=context.device.torch_name,
        batch_tokens=context.batch_tokens,
        done=done,
        on_result=record,
        progress=lambda n, _total, message: context.progress(len(done) + n, len(wanted), message),
    )
    hessians.close()
    return {"calibration_id": calibration.id, "recorded": recorded, "reused": len(done)}


def wanted_pairs(checkpoint: Checkpoint, anchors: list[CompressionConfig]) -> set[tuple[MatrixKey, str]]:
    """(matrix, hash of the anchor with its rank cut to the matrix).

    Raises:
        ConfigError: anchors that differ only in ranks which no matrix can have.
    """
    pairs = {
        (spec.key, anchor.clamped(spec.out_features, spec.in_features).config_hash)
        for spec in checkpoint.matrices()
        for anchor in anchors
    }
    if len(anchors) > 1 and len(pairs) == len(checkpoint.matrices()):
        raise ConfigError("the anchors are one and the same config for every matrix: choose a coarse and a fine one")
    return pairs


def sensitivity_row(result: SensitivityResult) -> dict[str, Any]:
    """The columns of a sensitivity that do not depend on the job."""
    return {
        "layer_idx": result.key.layer_idx,
        "projection": result.key.projection,
        "expert_idx": result.key.expert_idx,
        "anchor_config_hash": result.anchor.config_hash,
        "anchor_config": result.anchor.to_dict(),
        "anchor_error": result.error,
        "kl": result.kl_mean,
        "kl_se": result.kl_standard_error,
        "sensitivity": result.nats_per_error,
        "n_sequences": result.n_sequences,
        "kl_per_sequence": list(result.kl_per_sequence),
    }
