"""Layer fidelity: how well a block's output survives when all of its matrices are compressed (the plan's phase 0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.device import find_device, find_dtype
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.sensitivity.resident import ResidentModel
from compress_core.shared_inputs import SharedInputs
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.text.tokens import TokenWindows


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """A block fed with the original model's hidden states, before and after compression of its matrices."""

    layer_idx: int
    #: mean over tokens of the cosine between what the block adds to the residual stream
    cosine: float
    #: ‖Δ‖² / ‖block's own contribution‖², Δ the change of its output
    relative_error: float


def layer_fidelity(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    items: CompressionConfig | Mapping[MatrixKey, CompressionConfig],
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_result: Callable[[LayerFidelity], None] | None = None,
    progress: Progress = silent,
) -> list[LayerFidelity]:
    """Fidelity of every layer, at one config for all matrices (ranks are cut) or one each.

    The residual stream that passes a block untouched is left out: it would make every layer look faithful.

    Raises:
        NonFiniteValues, CalibrationError, DeviceNotFound, Interrupted: as ``kl_sensitivity``.
    """
    torch_device = find_device(device)
    resident = ResidentModel(checkpoint, tokens, torch_device, find_dtype(dtype), batch_tokens)
    inputs = SharedInputs(calibration, torch_device)
    results = []
    for layer_idx in range(checkpoint.n_layers):
        progress(layer_idx, checkpoint.n_layers, f"fidelity of layer {layer_idx}")
        with ExitStack() as stack:
            for spec in checkpoint.layer_matrices(layer_idx):
                config = items if isinstance(items, CompressionConfig) else items[spec.key]
                config = config.clamped(spec.out_features, spec.in_features)
                weight = read_matrix(checkpoint, spec).to(torch_device)
                shared = inputs.of(spec)
                compressed = compress_matrix(weight, shared.h_II, config, device=torch_device, shared=shared)
                stack.enter_context(resident.replaced(spec, compressed.dequantize()))
            results.append(_fidelity(resident, layer_idx))
        if on_result is not None:
            on_result(results[-1])
    progress(checkpoint.n_layers, checkpoint.n_layers, f"measured {checkpoint.n_layers} layers")
    return results


@torch.inference_mode()
def _fidelity(resident: ResidentModel, layer_idx: int) -> LayerFidelity:
    cosine = change = energy = 0.0
    for part in resident.parts():
        residual = resident.inputs[layer_idx][part].to(resident.model.device).double()
        before = resident.inputs[layer_idx + 1][part].to(resident.model.device).double() - residual
        after = resident.run_from(layer_idx, part, until=layer_idx + 1).double() - residual
        cosine += float(torch.nn.functional.cosine_similarity(before, after, dim=-1).sum())
        change += float((after - before).square().sum())
        energy += float(before.square().sum())
    n_positions = resident.n_sequences * resident.length
    return LayerFidelity(layer_idx, cosine / n_positions, change / energy if energy > 0 else float(change > 0))
