"""Calibrate a model: stream activations block by block and accumulate H = E[x xᵀ] for every distinct input."""

from __future__ import annotations

from pathlib import Path

import torch

from compress_core.calibrate.calibration import (
    FORMAT,
    VERSION,
    Calibration,
    CalibrationInfo,
    calibration_entries,
    pack_half,
    tensor_name,
)
from compress_core.calibrate.observe import observe
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.checkpoint.writer import SafetensorsWriter
from compress_core.device import find_device, find_dtype
from compress_core.errors import NonFiniteValues
from compress_core.progress import Progress, silent
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS, advance, embed_all
from compress_core.stream.model import StreamedModel
from compress_core.text.tokens import TokenWindows
from compress_core.version import NUMERICS_VERSION


def calibrate_model(
    checkpoint: Checkpoint,
    tokens: TokenWindows,
    out_path: Path,
    *,
    source: str,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress = silent,
) -> Calibration:
    """Write the calibration file of a model and open it.

    The original model's activations are used throughout, so layers do not depend on each other's compression.
    ``source`` and ``seed`` are recorded; they say where ``tokens`` came from.

    Raises:
        CalibrationError: token ids outside the vocabulary.
        NonFiniteValues: NaN in a weight (named) or in activations.
        DeviceNotFound: no such device.
        Interrupted: by ``progress``; nothing is left under ``out_path``.
    """
    torch_device = find_device(device)
    info = CalibrationInfo(
        model_fingerprint=checkpoint.fingerprint,
        n_layers=checkpoint.n_layers,
        source=source,
        samples=tokens.n_windows,
        length=tokens.length,
        n_tokens=tokens.n_tokens,
        seed=seed,
        token_sha256=tokens.sha256,
        dtype=dtype,
        device_kind=torch_device.type,
        numerics_version=NUMERICS_VERSION,
        torch_version=torch.__version__,
    )
    model = StreamedModel(DenseWeights(checkpoint), device=torch_device, dtype=find_dtype(dtype))
    tokens.check_vocabulary(model.vocab_size)
    metadata = {"format": FORMAT, "version": VERSION, "calibration": info.to_json()}
    hidden = embed_all(model, tokens.ids, batch_tokens)
    with SafetensorsWriter(out_path, calibration_entries(checkpoint), metadata) as writer:
        for layer_idx in range(checkpoint.n_layers):
            with model.layer(layer_idx) as layer, observe(checkpoint, model, layer, layer_idx) as moments:
                advance(model, layer_idx, hidden, batch_tokens)
            for group, moment in moments.items():
                hessian = moment.mean()
                if not torch.isfinite(hessian).all():
                    raise NonFiniteValues(f"H of input {group!r} in layer {layer_idx} overflowed: use dtype float32")
                writer.write(tensor_name(layer_idx, group), pack_half(hessian).numpy().tobytes())
            progress(layer_idx + 1, checkpoint.n_layers, f"calibrated layer {layer_idx + 1} of {checkpoint.n_layers}")
    return Calibration.open(out_path, checkpoint)
