"""Compress one matrix as W ≈ Q + L·R: prepare, decompose (see ``alternation``), pack.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.alternation import Progress, decompose
from compress_core.codebooks.raw import raw_values
from compress_core.codebooks.rtn import rtn_codes, rtn_scales
from compress_core.compressed import CompressedMatrix, pack_factors, pack_q, pack_raw
from compress_core.config import RAW_CODEBOOK, CompressionConfig
from compress_core.context import Hessian, MatrixContext, checked_weight, prepare_matrix
from compress_core.gptq import gptq
from compress_core.packing import pack_bits
from compress_core.precision import exact_float32
from compress_core.rounding import Rounder
from compress_core.shared_inputs import SharedInput

__all__ = ["CompressedMatrix", "compress_matrix"]


@torch.no_grad()
def compress_matrix(
    weight: Tensor,
    hessian: Hessian,
    config: CompressionConfig,
    *,
    device: torch.device | str | None = None,
    shared: SharedInput | None = None,
    progress: Progress | None = None,
) -> CompressedMatrix:
    """Compress a weight (out_features, in_features) of any float dtype.

    Args:
        hessian: (in_features, in_features) E[x xᵀ] of the layer's input, or None for the identity; or a function that
            loads it, where memory is scarce: it is called when H is needed, and H let go of afterwards.
        device: where to compute; default: where the weight is.
        shared: what other matrices with the same input have prepared; made from this very ``hessian``.
        progress: called after each outer iteration with the fraction done, and with 1 at the end.

    Raises:
        RankTooLarge: config.rank > min(out_features, in_features).
        NonFiniteValues: NaN or infinity in the weight or the Hessian.
        ValueError: the weight is no matrix of floats, the Hessian has another width, or ``shared``
            another Hessian, width or device.
    """
    if weight.ndim == 2:  # anything else is refused by name further down
        config.check_shape(weight.shape[0], weight.shape[1])
    target = torch.device(device) if device is not None else weight.device
    if shared is not None and weight.ndim == 2:
        shared.check(hessian, weight.shape[1], target)
    with exact_float32():
        if config.codebook == "rtn":
            return _done(_compress_rtn(checked_weight(weight, target), config), progress)
        if config.codebook == RAW_CODEBOOK:
            return _done(pack_raw(raw_values(checked_weight(weight, target)), config), progress)
        of_input = None if shared is None else shared.context(config.seed)
        context = prepare_matrix(weight, hessian, config.seed, target, of_input)
        return compress_prepared(context, config, progress=progress)


def _done(compressed: CompressedMatrix, progress: Progress | None) -> CompressedMatrix:
    """Say so, whatever the config."""
    if progress is not None:
        progress(1.0)
    return compressed


def _compress_rtn(w_OI: Tensor, config: CompressionConfig) -> CompressedMatrix:
    scales_O = rtn_scales(w_OI, config.b_q)
    return _pack_grid(rtn_codes(w_OI, scales_O, config.b_q), scales_O, config)


def _pack_grid(codes_OI: Tensor, scales_O: Tensor, config: CompressionConfig) -> CompressedMatrix:
    packed = {"q_codes": pack_bits(codes_OI, config.b_q).cpu(), "q_scale": scales_O.cpu()}
    return CompressedMatrix(config, (codes_OI.shape[0], codes_OI.shape[1]), packed)


def compress_prepared(
    context: MatrixContext, config: CompressionConfig, *, progress: Progress | None = None
) -> CompressedMatrix:
    """Compress a prepared matrix; ``compress_matrix`` is prepare plus this."""
    if config.codebook == "rtn":
        return _done(_compress_rtn(context.raw_w_OI, config), progress)
    if config.codebook == RAW_CODEBOOK:
        return _done(pack_raw(raw_values(context.raw_w_OI), config), progress)
    if config.codebook == "gptq":
        return _done(_pack_grid(*gptq(context.raw_w_OI, context.raw_h_II, config.b_q), config), progress)
    config.check_shape(*context.shape)
    rounder = Rounder.make(context.w_OI, config)
    found = decompose(context, config, rounder, progress)
    packed = pack_q(found.q.rounded, config)
    packed["q_scale"] = (rounder.largest.reshape(1) * context.scale).to(torch.float32).cpu()
    packed["q_rows"] = found.q.row_codes_O.to(torch.uint8).cpu()
    if config.rank:
        assert found.factors is not None  # decompose gives factors for every rank above 0
        packed |= pack_factors(found.factors, config)
    return _done(CompressedMatrix(config, context.shape, packed), progress)
