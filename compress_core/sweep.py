"""All configs of one matrix at once, sharing the rotation, the factorisations of H and the leading directions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress_core.compressed import CompressedMatrix
from compress_core.config import CODEBOOK_BITS, UNROTATED_CODEBOOKS, CompressionConfig
from compress_core.context import Hessian, MatrixContext, loaded, prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.error_metrics import Energies, energies, errors
from compress_core.errors import NonFiniteValues
from compress_core.measurement import MatrixMeasurement
from compress_core.precision import exact_float32
from compress_core.residual_spectrum import residual_spectrum
from compress_core.shared_inputs import SharedInput


@torch.no_grad()
def sweep_matrix(
    weight: Tensor,
    hessian: Hessian,
    configs: Sequence[CompressionConfig],
    *,
    device: torch.device | str | None = None,
    shared: SharedInput | None = None,
    spectrum_rank: int | None = None,
    on_measurement: Callable[[MatrixMeasurement], None] | None = None,
) -> list[MatrixMeasurement]:
    """Measure each config on a weight (out_features, in_features); same order as ``configs``.

    Each result is what ``compress_matrix`` gives alone.

    Args:
        hessian: (in_features, in_features), or None for the identity; or a function that loads it, where memory is
            scarce: it is called once to prepare and once for each measurement, and H is let go of afterwards.
        shared: what other matrices with the same input have prepared, and this one prepares for them; made from
            this very ``hessian``. The results are the same without.
        spectrum_rank: how far the spectrum of what rank 0 leaves is told; None = twice the largest rank of ``configs``;
            0 = not at all. Its time is not in the measurement's seconds.
        on_measurement: called with each measurement as soon as it is known, in the order of :func:`in_groups`; may
            raise Interrupted to stop.

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
    if spectrum_rank is None:
        spectrum_rank = 2 * max((config.rank for config in configs), default=0)
    contexts: dict[int, MatrixContext] = {}
    yardstick: Yardstick | None = None
    found: dict[int, MatrixMeasurement] = {}
    with exact_float32():
        for number in in_groups(configs):
            config = configs[number]
            started = time.perf_counter()
            # what rotates nothing has no use for a seed: any context will do
            seed = next(iter(contexts), config.seed) if config.codebook in UNROTATED_CODEBOOKS else config.seed
            if seed not in contexts:
                of_input = None if shared is None else shared.context(seed)
                contexts[seed] = prepare_matrix(weight, hessian, seed, target, of_input)
            context = contexts[seed]
            compressed = compress_prepared(context, config)
            yardstick = yardstick or Yardstick(context.raw_w_OI, context.hessian)
            measured = yardstick.measure(compressed, time.perf_counter() - started)
            found[number] = replace(measured, residual_spectrum=residual_spectrum(context, config, spectrum_rank))
            if on_measurement is not None:
                on_measurement(found[number])
    return [found[number] for number in range(len(configs))]


def in_groups(configs: Sequence[CompressionConfig]) -> list[int]:
    """Numbers of the configs with those that differ in b_q alone next to each other: they share what a rank costs."""
    groups: dict[CompressionConfig, list[int]] = {}
    for number, config in enumerate(configs):
        groups.setdefault(replace(config, b_q=CODEBOOK_BITS[config.codebook][0]), []).append(number)
    return [number for group in groups.values() for number in group]


@dataclass
class Yardstick:
    """A weight and what its approximations are measured by; what W alone says is computed once."""

    w_OI: Tensor
    hessian: Hessian
    _of_weight: Energies | None = None

    def measure(self, compressed: CompressedMatrix, seconds: float = 0.0) -> MatrixMeasurement:
        """See :func:`measure`."""
        device = self.w_OI.device
        w_hat_OI = compressed.dequantize(device=device)
        if not bool(torch.isfinite(w_hat_OI).all()):
            raise NonFiniteValues(
                f"compressed at {compressed.config} the matrix has NaN or infinite entries: its weights are too large "
                "for float32 scales, a retry cannot help"
            )
        h_II = loaded(self.hessian)  # not before what dequantising needs is free again
        h_II = None if h_II is None else h_II.to(device)
        if self._of_weight is None:
            self._of_weight = energies(self.w_OI, None, h_II)
        found = errors(self.w_OI, w_hat_OI, h_II, self._of_weight)
        return MatrixMeasurement(
            config=compressed.config,
            raw_mse=found.raw_mse,
            normalized_mse=found.normalized_mse,
            calibration_weighted_error=found.calibration_weighted_error,
            nbytes=compressed.nbytes,
            bits_per_weight=compressed.bits_per_weight,
            seconds=seconds,
        )


def measure(weight: Tensor, hessian: Hessian, compressed: CompressedMatrix, seconds: float = 0.0) -> MatrixMeasurement:
    """Errors and bytes of a compressed matrix, from what it dequantises to.

    Raises:
        NonFiniteValues: what it dequantises to is not finite, because the weights were next to the end of float32.
    """
    return Yardstick(weight, hessian).measure(compressed, seconds)
