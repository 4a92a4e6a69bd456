"""Layer fidelity: how well a block's output survives when all of its matrices are compressed (the plan's phase 0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.decompose import compress_matrix
from compress_core.device import find_device, find_dtype
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.sensitivity.replacements import Replacements
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
    model = Replacements(checkpoint, tokens, torch_device, find_dtype(dtype), batch_tokens)
    inputs = SharedInputs(calibration, torch_device)
    results = []
    for layer_idx in range(checkpoint.n_layers):
        progress(layer_idx, checkpoint.n_layers, f"fidelity of layer {layer_idx}")
        states = model.states(layer_idx)
        with model.layer(layer_idx) as layer, ExitStack() as stack:
            before = model.after(layer_idx)
            for spec in checkpoint.layer_matrices(layer_idx):
                config = items if isinstance(items, CompressionConfig) else items[spec.key]
                config = config.clamped(spec.out_features, spec.in_features)
                weight = read_matrix(checkpoint, spec).to(torch_device)
                shared = inputs.of(spec)
                compressed = compress_matrix(weight, shared.h_II, config, device=torch_device, shared=shared)
                stack.enter_context(model.replaced(layer, spec, compressed.dequantize()))
            after = model.after(layer_idx)
        parts = [tuple(hidden[part] for hidden in (states, before, after)) for part in model.parts()]
        results.append(_fidelity(layer_idx, parts))
        if on_result is not None:
            on_result(results[-1])
    progress(checkpoint.n_layers, checkpoint.n_layers, f"measured {checkpoint.n_layers} layers")
    return results


def _fidelity(layer_idx: int, parts: Sequence[tuple[Tensor, ...]]) -> LayerFidelity:
    """From the hidden states (B, T, D) before the block, after it, and after the compressed block."""
    cosine = change = energy = 0.0
    n_positions = 0
    for states, original, compressed in parts:
        residual = states.double()
        before, after = original.double() - residual, compressed.double() - residual
        cosine += float(torch.nn.functional.cosine_similarity(before, after, dim=-1).sum())
        change += float((after - before).square().sum())
        energy += float(before.square().sum())
        n_positions += states.shape[0] * states.shape[1]
    return LayerFidelity(layer_idx, cosine / n_positions, change / energy if energy > 0 else float(change > 0))
