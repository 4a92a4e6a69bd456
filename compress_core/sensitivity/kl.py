"""KL anchors: what the model's output loses when one matrix alone is compressed at an anchor config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint.checkpoint import Checkpoint
from compress_core.config import CompressionConfig
from compress_core.matrix import MatrixKey
from compress_core.progress import Progress, silent
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.measure import Change, measure_changes
from compress_core.sensitivity.result import SensitivityResult
from compress_core.stream.hidden import DEFAULT_BATCH_TOKENS
from compress_core.text.tokens import TokenWindows

METHOD = "kl_anchor"
#: called with each result as soon as it is known; may raise Interrupted to stop
OnResult = Callable[[SensitivityResult], None]


def kl_sensitivity(
    checkpoint: Checkpoint,
    calibration: HessianSource | None,
    tokens: TokenWindows,
    anchors: Sequence[CompressionConfig],
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    hold: bool | None = None,
    done: Collection[tuple[MatrixKey, str]] = (),
    on_result: OnResult | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """Measure every matrix at every anchor, on a bench of this call's own; see ``kl_anchors``.

    Args:
        tokens: windows of the *measure* split.
        hold: see ``Bench``.

    Raises:
        NonFiniteValues: NaN in a weight (named), in activations, or in a KL.
        CalibrationError, DeviceNotFound, Interrupted: see there.
    """
    bench = Bench(checkpoint, tokens, device, dtype, batch_tokens, hold)
    approximations = Approximations(checkpoint, calibration, bench.device)
    return kl_anchors(bench, approximations, anchors, done=done, on_result=on_result, progress=progress)


def kl_anchors(
    bench: Bench,
    approximations: Approximations,
    anchors: Sequence[CompressionConfig],
    *,
    done: Collection[tuple[MatrixKey, str]] = (),
    on_result: OnResult | None = None,
    progress: Progress = silent,
) -> list[SensitivityResult]:
    """Measure every matrix at every anchor.

    Args:
        anchors: configs; ranks are cut to min(out, in) of each matrix.
        done: (matrix, config_hash of the cut config) pairs that are known and left out.
        progress: told (number of results, of all, what is being done); may raise Interrupted.

    Raises:
        NonFiniteValues: as :func:`kl_sensitivity`.
    """
    work = anchor_work(bench.checkpoint, anchors, done)
    if not work:
        return []
    progress(0, len(work), "running the original model")

    def weight_of(change: Change[CompressionConfig]) -> tuple[Tensor, float]:
        found = approximations.of(change.spec, change.anchor)
        return found.w_hat_OI, found.calibration_weighted_error

    results: list[SensitivityResult] = []
    for found in measure_changes(bench.model, bench.reference, work, weight_of, progress):
        key, anchor = found.change.spec.key, found.change.anchor
        results.append(SensitivityResult(key, anchor, found.kl_per_sequence, found.error, METHOD))
        if on_result is not None:
            on_result(results[-1])
    progress(len(work), len(work), f"measured {len(work)} sensitivities")
    return results


def anchor_work(
    checkpoint: Checkpoint, anchors: Sequence[CompressionConfig], done: Collection[tuple[MatrixKey, str]] = ()
) -> list[Change[CompressionConfig]]:
    """Every matrix at every anchor, with ranks cut, equal ones merged and known ones left out; in the model's order."""
    work = []
    for spec in checkpoint.matrices():
        cut = dict.fromkeys(anchor.clamped(spec.out_features, spec.in_features) for anchor in anchors)
        work += [Change(spec, config) for config in cut if (spec.key, config.config_hash) not in done]
    return work
