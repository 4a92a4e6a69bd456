"""Calibrate a model: stream activations block by block and store H = E[x xᵀ] of every distinct input."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.folder import begin_folder, is_complete, is_whole
from compress_core.calibrate.forward import ForwardPass, OnBatch, describe
from compress_core.calibrate.info import CalibrationInfo
from compress_core.calibrate.layer_file import layer_inputs, layer_path, open_layer, unseen_inputs, write_layer
from compress_core.calibrate.recipe import Recipe, write_recipe, write_tokens
from compress_core.calibrate.second_moment import SecondMoment
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.device import find_dtype
from compress_core.progress import Progress, silent
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.stream.states import DEFAULT_RAM_BYTES
from compress_core.text.tokens import TokenWindows

#: where a run keeps its hidden states, inside the folder; gone when it is complete
SCRATCH = "scratch"
#: units of progress of one batch: about half of what it costs to gather H is the layer's own run
_RUN, _GATHER = 1, 2


def calibrate_model(
    checkpoint: Checkpoint,
    tokens: TokenWindows,
    out_dir: Path,
    *,
    source: str,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ram_bytes: int = DEFAULT_RAM_BYTES,
    progress: Progress = silent,
) -> Calibration:
    """Write the calibration of a model and open it; goes on where an interrupted run in ``out_dir`` stopped.

    The original model's activations are used throughout, so layers do not depend on each other's compression.
    However often a run was interrupted, the folder ends with the same bytes.

    Args:
        source, seed: recorded; they say where ``tokens`` came from.
        dtype: of weights and activations, float32 or bfloat16; H is summed in float64 from float32 products either way.
        ram_bytes: hidden states above this are kept in mapped files, and a run that was killed goes on from these;
            below, the layers that are done are run again without gathering H.

    Raises:
        CalibrationError: token ids outside the vocabulary, or ``out_dir`` holds another calibration.
        NonFiniteValues: NaN in a weight (named) or in activations.
        DeviceNotFound: no such device.
        OutOfMemory: no room on disk for the hidden states.
        Interrupted: by ``progress``; layers that are done stay in ``out_dir``.
    """
    find_dtype(dtype)
    info = describe(checkpoint, tokens, source=source, seed=seed, device=device, dtype=dtype, batch_tokens=batch_tokens)
    if is_complete(out_dir, checkpoint, info, "hessians"):
        progress(1, 1, "the calibration is there already")
        return Calibration.open(out_dir, checkpoint)
    begin_folder(out_dir)
    write_tokens(out_dir, tokens)
    missing = [
        layer_idx for layer_idx in range(checkpoint.n_layers) if not is_whole(out_dir, checkpoint, info, layer_idx)
    ]
    if not missing:
        progress(1, 1, "all layers are there already")
    else:
        forward = ForwardPass(checkpoint, tokens, info, out_dir / SCRATCH, device=device, ram_bytes=ram_bytes)
        _gather(checkpoint, info, forward, out_dir, missing, progress)
    shutil.rmtree(out_dir / SCRATCH, ignore_errors=True)
    write_recipe(out_dir, Recipe(info=info, keeps="hessians", report=_report(checkpoint, info, out_dir)))
    return Calibration.open(out_dir, checkpoint)


def keep_tokens(
    checkpoint: Checkpoint,
    tokens: TokenWindows,
    out_dir: Path,
    *,
    source: str,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> CalibrationInfo:
    """Store only what H is computed from; whoever needs H opens a ``StreamedCalibration``.

    Raises:
        CalibrationError: token ids outside the vocabulary, or ``out_dir`` holds another calibration.
        DeviceNotFound, ConfigError: no such device or dtype.
    """
    find_dtype(dtype)
    embedding = next(t for name, t in checkpoint.tensors.items() if name.endswith("embed_tokens.weight"))
    tokens.check_vocabulary(embedding.shape[0])
    info = describe(checkpoint, tokens, source=source, seed=seed, device=device, dtype=dtype, batch_tokens=batch_tokens)
    if not is_complete(out_dir, checkpoint, info, "tokens"):
        begin_folder(out_dir)
        write_tokens(out_dir, tokens)
        write_recipe(out_dir, Recipe(info=info, keeps="tokens"))
    return info


def _gather(
    checkpoint: Checkpoint,
    info: CalibrationInfo,
    forward: ForwardPass,
    out_dir: Path,
    missing: list[int],
    progress: Progress,
) -> None:
    """Write the files of the missing layers; the total of ``progress`` is what is left to do, so its pace is honest."""
    if forward.layer_idx > missing[0]:
        forward.restart()
    costs = {
        layer_idx: _GATHER if layer_idx in missing else _RUN for layer_idx in range(forward.layer_idx, missing[-1] + 1)
    }
    meter = _Meter(progress, checkpoint.n_layers, forward.n_batches, forward.n_batches * sum(costs.values()))
    progress(0, meter.total, f"{checkpoint.n_layers - len(missing)} of {checkpoint.n_layers} layers are there")
    for layer_idx, cost in costs.items():
        on_batch = meter.layer(layer_idx, cost)
        if layer_idx in missing:
            forward.gather(on_batch, partial(_write, checkpoint, info, out_dir, layer_idx))
        else:
            forward.advance(on_batch)
    forward.close()


@dataclass
class _Meter:
    """Tells progress batch by batch."""

    progress: Progress
    n_layers: int
    n_batches: int
    total: int
    done: int = 0

    def layer(self, layer_idx: int, cost: int) -> OnBatch:
        """What the batches of the next layer call."""
        before = self.done
        self.done += cost * self.n_batches
        again = "" if cost == _GATHER else " again"

        def on_batch(batch: int) -> None:
            message = f"layer {layer_idx + 1} of {self.n_layers}{again}, batch {batch} of {self.n_batches}"
            self.progress(before + cost * batch, self.total, message)

        return on_batch


def _write(
    checkpoint: Checkpoint,
    info: CalibrationInfo,
    folder: Path,
    layer_idx: int,
    moments: Mapping[str, SecondMoment],
) -> None:
    write_layer(layer_path(folder, layer_idx), info, layer_idx, layer_inputs(checkpoint, layer_idx), moments)


def _report(checkpoint: Checkpoint, info: CalibrationInfo, folder: Path) -> dict[str, Any]:
    """Inputs that no token reached, from the layers' files: the same however often the run was interrupted."""
    unseen = []
    for layer_idx in range(checkpoint.n_layers):
        header = open_layer(layer_path(folder, layer_idx), info, layer_idx, layer_inputs(checkpoint, layer_idx))
        unseen += [f"{layer_idx}.{name}" for name in unseen_inputs(header)]
    return {"unseen": unseen}
