"""Layer fidelity: how well a block's output survives when all of its matrices are compressed (the plan's phase 0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.config import CompressionConfig
from compress_core.errors import NonFiniteValues
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.text.tokens import TokenWindows


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """A block fed with the original model's hidden states, before and after compression of its matrices."""

    layer_idx: int
    #: mean over tokens of the cosine between what the block adds to the residual stream
    cosine: float
    #: over sequences; None with one sequence
    cosine_se: float | None
    #: ‖Δ‖² / ‖block's own contribution‖², Δ the change of its output; sums over all tokens
    relative_error: float
    #: jackknife over sequences
    relative_error_se: float | None
    n_sequences: int


#: called with each layer's as soon as it is known; may raise Interrupted to stop
OnFidelity = Callable[[LayerFidelity], None]


def layer_fidelity(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    items: CompressionConfig | Mapping[MatrixKey, CompressionConfig],
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_result: OnFidelity | None = None,
    progress: Progress = silent,
) -> list[LayerFidelity]:
    """Fidelity of every layer, on a bench of this call's own; see ``fidelities``.

    Raises:
        NonFiniteValues, CalibrationError, DeviceNotFound, Interrupted: as ``kl_sensitivity``.
    """
    bench = Bench(checkpoint, tokens, device, dtype, batch_tokens)
    approximations = Approximations(checkpoint, calibration, bench.device)
    return fidelities(bench, approximations, items, on_result=on_result, progress=progress)


def fidelities(
    bench: Bench,
    approximations: Approximations,
    items: CompressionConfig | Mapping[MatrixKey, CompressionConfig],
    *,
    done: Collection[int] = (),
    on_result: OnFidelity | None = None,
    progress: Progress = silent,
) -> list[LayerFidelity]:
    """Fidelity of every layer, at one config for all matrices (ranks are cut) or one each.

    The residual stream that passes a block untouched is left out: it would make every layer look faithful.

    Args:
        done: layers that are known and left out.
        progress: told (layers done, of those to do, what is being done); may raise Interrupted.

    Raises:
        NonFiniteValues, CalibrationError, DeviceNotFound, Interrupted: as ``kl_sensitivity``.
    """
    layers = [layer_idx for layer_idx in range(bench.checkpoint.n_layers) if layer_idx not in done]
    results: list[LayerFidelity] = []
    for layer_idx in layers:
        progress(len(results), len(layers), f"fidelity of layer {layer_idx}")
        model = bench.model
        states = model.states(layer_idx)
        with model.layer(layer_idx) as layer, ExitStack() as stack:
            before = model.after(layer_idx)
            for spec in bench.checkpoint.layer_matrices(layer_idx):
                config = items if isinstance(items, CompressionConfig) else items[spec.key]
                found = approximations.of(spec, config.clamped(spec.out_features, spec.in_features))
                stack.enter_context(model.replaced(layer, spec, found.w_hat_OI))
            after = model.after(layer_idx)
        sums = [_sums(states[part], before[part], after[part]) for part in model.parts()]
        results.append(_fidelity(layer_idx, np.concatenate(sums)))
        if on_result is not None:
            on_result(results[-1])
    progress(len(layers), len(layers), f"measured {len(layers)} layers")
    return results


def _sums(states_BTD: Tensor, before_BTD: Tensor, after_BTD: Tensor) -> NDArray[np.float64]:
    """(B, 3) of each sequence: mean cosine, ‖Δ‖², ‖contribution‖²."""
    residual = states_BTD.double()
    before, after = before_BTD.double() - residual, after_BTD.double() - residual
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean(1)
    change, energy = (after - before).square().sum((1, 2)), before.square().sum((1, 2))
    found: NDArray[np.float64] = torch.stack([cosine, change, energy], dim=1).numpy()
    return found


def _fidelity(layer_idx: int, sums_N3: NDArray[np.float64]) -> LayerFidelity:
    if not np.isfinite(sums_N3).all():
        raise NonFiniteValues(f"the output of layer {layer_idx} compressed is NaN or infinite: use dtype float32")
    n = len(sums_N3)
    totals = sums_N3.sum(0)
    without = totals - sums_N3
    left_out = np.array([_ratio(change, energy) for _, change, energy in without])
    return LayerFidelity(
        layer_idx,
        cosine=float(totals[0] / n),
        cosine_se=float(sums_N3[:, 0].std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        relative_error=_ratio(totals[1], totals[2]),
        relative_error_se=float(math.sqrt((n - 1) * left_out.var())) if n > 1 else None,
        n_sequences=n,
    )


def _ratio(change: float, energy: float) -> float:
    return float(change / energy) if energy > 0 else float(change > 0)
