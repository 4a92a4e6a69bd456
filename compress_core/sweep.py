"""All configs of one matrix at once, sharing the rotation, the factorisations of H and the leading directions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compress_core.compressed import CompressedMatrix
from compress_core.config import BASELINE_CODEBOOKS, CompressionConfig
from compress_core.context import Hessian, MatrixContext, loaded, prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.error_metrics import calibration_weighted_error, normalized_mse, raw_mse
from compress_core.errors import NonFiniteValues
from compress_core.measurement import MatrixMeasurement
from compress_core.precision import exact_float32
from compress_core.shared_inputs import SharedInput


@torch.no_grad()
def sweep_matrix(
    weight: Tensor,
    hessian: Hessian,
    configs: Sequence[CompressionConfig],
    *,
    device: torch.device | str | None = None,
    shared: SharedInput | None = None,
    on_measurement: Callable[[MatrixMeasurement], None] | None = None,
) -> list[MatrixMeasurement]:
    """Measure each config on a weight (out_features, in_features); same order as ``configs``.

    Each result is what ``compress_matrix`` gives alone.

    Args:
        hessian: (in_features, in_features), or None for the identity; or a function that loads it, where memory is
            scarce: it is called once to prepare and once for each measurement, and H is let go of afterwards.
        shared: what other matrices with the same input have prepared, and this one prepares for them; made from
            this very ``hessian``. The results are the same without.
        on_measurement: called with each measurement as soon as it is known; may raise Interrupted to stop.

    Raises:
        RankTooLarge: a config's rank > min(out_features, in_features); before any work.
        NonFiniteValues: NaN or infinity in the weight or the Hessian.
        ValueError: ``shared`` is of another Hessian, width or device.
    """
    for config in configs if weight.ndim == 2 else ():  # anything else is refused by name further down
        config.check_shape(weight.shape[0], weight.shape[1])
    target = torch.device(device) if device is not None else weight.device
    if shared is not None and weight.ndim == 2:
        shared.check(hessian, weight.shape[1], target)
    contexts: dict[int, MatrixContext] = {}
    measurements = []
    with exact_float32():
        for config in configs:
            started = time.perf_counter()
            # baselines rotate nothing: any seed's context will do
            seed = next(iter(contexts), config.seed) if config.codebook in BASELINE_CODEBOOKS else config.seed
            if seed not in contexts:
                of_input = None if shared is None else shared.context(seed)
                contexts[seed] = prepare_matrix(weight, hessian, seed, target, of_input)
            context = contexts[seed]
            compressed = compress_prepared(context, config)
            measurement = measure(context.raw_w_OI, context.hessian, compressed, time.perf_counter() - started)
            measurements.append(measurement)
            if on_measurement is not None:
                on_measurement(measurement)
    return measurements


def measure(weight: Tensor, hessian: Hessian, compressed: CompressedMatrix, seconds: float = 0.0) -> MatrixMeasurement:
    """Errors and bytes of a compressed matrix, from what it dequantises to.

    Raises:
        NonFiniteValues: what it dequantises to is not finite, because the weights were next to the end of float32.
    """
    w_hat = compressed.dequantize(device=weight.device)
    if not bool(torch.isfinite(w_hat).all()):
        raise NonFiniteValues(
            f"compressed at {compressed.config} the matrix has NaN or infinite entries: its weights are too large for "
            "float32 scales, a retry cannot help"
        )
    h_II = loaded(hessian)  # not before what dequantising needs is free again
    return MatrixMeasurement(
        config=compressed.config,
        raw_mse=raw_mse(weight, w_hat),
        normalized_mse=normalized_mse(weight, w_hat),
        calibration_weighted_error=calibration_weighted_error(
            weight, w_hat, None if h_II is None else h_II.to(weight.device)
        ),
        nbytes=compressed.nbytes,
        bits_per_weight=compressed.bits_per_weight,
        seconds=seconds,
    )
