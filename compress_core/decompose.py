"""Compress one matrix as W ≈ Q + L·R: CALDERA's alternation with a softened Hessian.

CALDERA (arXiv 2405.18886, alg. 1) alternates between Q = LDLQ(W − L R) and L R = LPLR(W − Q). Here Q is rounded
against the Hessian that *remains* once L·R has corrected its directions,

    H' = S (I − (1 − κ) V Vᵀ) Sᵀ + ε·mean(diag H)·I,      H = S Sᵀ,

where V spans the whitened input directions of L·R and κ is the share of the error energy there that quantised
factors leave behind. The best iterate by the error on the raw H is kept.

Shapes: O = out_features, I = in_features, r = rank. w_OI, h_II.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook, get_codebook
from compress_core.codebooks.rtn import rtn_codes, rtn_scales
from compress_core.compressed import CompressedMatrix, pack_factors, pack_q
from compress_core.config import CompressionConfig
from compress_core.context import DAMPING, MatrixContext, checked_weight, damped, prepare_matrix
from compress_core.ldlq import Feedback, Rounded, ldlq, make_feedback
from compress_core.lowrank import Factors, fit_factors
from compress_core.packing import pack_bits
from compress_core.precision import exact_float32

__all__ = ["CompressedMatrix", "compress_matrix", "compress_prepared"]

#: called after each outer iteration with the fraction done; may raise Interrupted
Progress = Callable[[float], None]

#: κ by the coarser factor's bits
_KAPPA = {4: 0.1, 8: 0.01, 16: 0.003}
#: scales that are tried, as multiples of the root mean square
_SCALE_MULTIPLES = (0.85, 0.92, 1.0, 1.08, 1.2, 1.4, 1.7, 2.1)
#: rows on which scales are tried
_SCALE_ROWS = 96
#: refits of both factors in each outer iteration
_FACTOR_ROUNDS = 2
#: iterations without progress after which the alternation stops
_PATIENCE = 2


@torch.no_grad()
def compress_matrix(
    weight: Tensor,
    hessian: Tensor | None,
    config: CompressionConfig,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CompressedMatrix:
    """Compress a weight (out_features, in_features) of any float dtype.

    Args:
        hessian: (in_features, in_features) E[x xᵀ] of the layer's input, or None for the identity.
        device: where to compute; default: where the weight is.
        progress: called after each outer iteration with the fraction done.

    Raises:
        RankTooLarge: config.rank > min(out_features, in_features).
        NonFiniteValues: NaN or infinity in the weight or the Hessian.
    """
    config.check_shape(weight.shape[0], weight.shape[1])
    target = torch.device(device) if device is not None else weight.device
    with exact_float32():
        if config.codebook == "rtn":
            return _compress_rtn(checked_weight(weight, target), config)
        return compress_prepared(prepare_matrix(weight, hessian, config.seed, target), config, progress=progress)


def _compress_rtn(w_OI: Tensor, config: CompressionConfig) -> CompressedMatrix:
    scales_O = rtn_scales(w_OI, config.b_q)
    codes = rtn_codes(w_OI, scales_O, config.b_q)
    packed = {"q_codes": pack_bits(codes, config.b_q).cpu(), "q_scale": scales_O.cpu()}
    return CompressedMatrix(config, (w_OI.shape[0], w_OI.shape[1]), False, packed)


@dataclass(frozen=True)
class _Candidate:
    """One iterate in normalised, rotated units."""

    rounded: Rounded
    scale: Tensor
    factors: Factors | None
    error: float


def compress_prepared(
    context: MatrixContext, config: CompressionConfig, *, progress: Progress | None = None
) -> CompressedMatrix:
    """Compress a prepared matrix; ``compress_matrix`` is prepare plus this."""
    if config.codebook == "rtn":
        return _compress_rtn(context.raw_w_OI, config)
    config.check_shape(*context.shape)
    best = _alternate(context, config, progress) if config.rank else _round_only(context, config)
    packed = pack_q(best.rounded, config)
    packed["q_scale"] = (best.scale.reshape(1) * context.scale).to(torch.float32).cpu()
    if best.factors is not None:
        packed["lr_scale"] = torch.tensor([context.scale], dtype=torch.float32)
        packed |= pack_factors(best.factors, config)
    return CompressedMatrix(config, context.shape, True, packed)


def _round_only(context: MatrixContext, config: CompressionConfig) -> _Candidate:
    codebook, tail = _codebooks(context, config)
    feedback = context.input.feedback(codebook.block)
    scale = _search_scale(context.w_OI, feedback, codebook, tail)
    rounded = _round(context.w_OI, feedback, codebook, tail, scale)
    return _Candidate(rounded, scale, None, _error(context, rounded.value_OI))


def _alternate(context: MatrixContext, config: CompressionConfig, progress: Progress | None) -> _Candidate:
    codebook, tail = _codebooks(context, config)
    shared = context.input
    kappa = _KAPPA[min(config.factor_bits_l, config.factor_bits_r)]
    directions_Ir = shared.directions(config.rank)
    low_rank_OI = torch.zeros_like(context.w_OI)
    scale: Tensor | None = None
    best: _Candidate | None = None
    stale = 0
    for iteration in range(config.iterations):
        feedback = _softened_feedback(context, directions_Ir, kappa, codebook.block)
        target_OI = context.w_OI - low_rank_OI
        if scale is None:
            scale = _search_scale(target_OI, feedback, codebook, tail)
        rounded = _round(target_OI, feedback, codebook, tail, scale)
        factors = fit_factors(
            context.w_OI - rounded.value_OI,
            shared.s_II,
            shared.feedback(1),
            bits_l=config.factor_bits_l,
            bits_r=config.factor_bits_r,
            start_Ik=torch.cat([directions_Ir, shared.start(0)[:, : context.shape[1] - config.rank]], dim=1),
            rank=config.rank,
            rounds=_FACTOR_ROUNDS,
        )
        low_rank_OI = factors.product_OI
        error = _error(context, rounded.value_OI + low_rank_OI)
        if progress is not None:
            progress((iteration + 1) / config.iterations)
        if best is None or error < best.error:
            stale = 0 if best is None or error < 0.995 * best.error else stale + 1
            best = _Candidate(rounded, scale, factors, error)
        else:
            stale += 1
        if stale >= _PATIENCE:
            break
        directions_Ir, _ = torch.linalg.qr((factors.right.value @ shared.s_II).T)
    assert best is not None
    return best


def _codebooks(context: MatrixContext, config: CompressionConfig) -> tuple[Codebook, Codebook]:
    device = context.w_OI.device
    return get_codebook(config.codebook, config.b_q, device), get_codebook("scalar", config.b_q, device)


def _softened_feedback(context: MatrixContext, directions_Ir: Tensor, kappa: float, block: int) -> Feedback:
    """Factorise H' = H − (1 − κ)(S V)(S V)ᵀ + ε·mean(diag H)·I, in float64."""
    corrected = (context.input.s_II @ directions_Ir).to(torch.float64)
    h64 = damped(context.input.h_II, DAMPING)
    return make_feedback(h64 - (1 - kappa) * (corrected @ corrected.T), block)


def _round(w_OI: Tensor, feedback: Feedback, codebook: Codebook, tail: Codebook, scale: Tensor) -> Rounded:
    return ldlq(w_OI, feedback, codebook, tail, scale.expand(w_OI.shape[0]))


def _search_scale(w_OI: Tensor, feedback: Feedback, codebook: Codebook, tail: Codebook) -> Tensor:
    """The scale (0-dim) with the least H-weighted error on a sample of rows.

    A scale from the root mean square alone clips what heavy tails the rotation leaves, and clipped errors align with
    the top directions of H.
    """
    rms = w_OI.square().mean().sqrt()
    rows = w_OI.shape[0]
    sample = w_OI[:: max(1, rows // _SCALE_ROWS)]
    multiples = torch.tensor(_SCALE_MULTIPLES, device=w_OI.device)
    count = len(_SCALE_MULTIPLES)
    stacked = sample.repeat(count, 1)
    scale_O = (rms * multiples).repeat_interleave(sample.shape[0])
    rounded = ldlq(stacked, feedback, codebook, tail, scale_O)
    error_C = rounded.weighted_error_O(stacked, feedback).reshape(count, -1).sum(1)
    return rms * multiples[error_C.argmin()]


def _error(context: MatrixContext, w_hat_OI: Tensor) -> float:
    """‖(W − Ŵ) S‖² in normalised, rotated units."""
    return float(((context.w_OI - w_hat_OI) @ context.input.s_II).square().sum())
