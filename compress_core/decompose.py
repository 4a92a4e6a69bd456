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
from compress_core.gptq import gptq
from compress_core.ldlq import Feedback, Rounded, ldlq, make_feedback
from compress_core.lowrank import Factors, fit_factors
from compress_core.packing import pack_bits
from compress_core.precision import exact_float32
from compress_core.row_scales import decode_row_scales, encode_row_scales, shifted

__all__ = ["CompressedMatrix", "compress_matrix", "compress_prepared"]

#: called after each outer iteration with the fraction done; may raise Interrupted
Progress = Callable[[float], None]

#: κ by the coarser factor's bits
_KAPPA = {4: 0.025, 8: 0.001, 16: 0.003}
#: factor bits from which the alternation starts with L·R of W instead of with Q
_FACTORS_FIRST_BITS = 8
#: row scales that are tried first, in steps of 2^(1/16) from the row's root mean square
_WIDE_STEPS = (-4, -2, 0, 2, 4, 7, 11)
#: … and later, from the scale that was best
_NARROW_STEPS = (-2, 0, 2)
_FINAL_STEPS = (-3, -2, -1, 0, 1, 2, 3)
#: refits of R to the rounded L in each outer iteration
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
        ValueError: the weight is no matrix of floats, or the Hessian has another width.
    """
    if weight.ndim == 2:  # anything else is refused by name further down
        config.check_shape(weight.shape[0], weight.shape[1])
    target = torch.device(device) if device is not None else weight.device
    with exact_float32():
        if config.codebook == "rtn":
            return _compress_rtn(checked_weight(weight, target), config)
        return compress_prepared(prepare_matrix(weight, hessian, config.seed, target), config, progress=progress)


def _compress_rtn(w_OI: Tensor, config: CompressionConfig) -> CompressedMatrix:
    scales_O = rtn_scales(w_OI, config.b_q)
    return _pack_grid(rtn_codes(w_OI, scales_O, config.b_q), scales_O, config)


def _pack_grid(codes_OI: Tensor, scales_O: Tensor, config: CompressionConfig) -> CompressedMatrix:
    packed = {"q_codes": pack_bits(codes_OI, config.b_q).cpu(), "q_scale": scales_O.cpu()}
    return CompressedMatrix(config, (codes_OI.shape[0], codes_OI.shape[1]), packed)


@dataclass(frozen=True)
class _RoundedRows:
    """Q and the stored codes of its row scales."""

    rounded: Rounded
    row_codes_O: Tensor
    scale_O: Tensor


@dataclass(frozen=True)
class _Candidate:
    """One iterate in normalised, rotated units; the error is ‖(W − Ŵ) S‖²."""

    q: _RoundedRows
    factors: Factors | None
    directions_Ir: Tensor | None
    error: float


def compress_prepared(
    context: MatrixContext, config: CompressionConfig, *, progress: Progress | None = None
) -> CompressedMatrix:
    """Compress a prepared matrix; ``compress_matrix`` is prepare plus this."""
    if config.codebook == "rtn":
        return _compress_rtn(context.raw_w_OI, config)
    if config.codebook == "gptq":
        return _pack_grid(*gptq(context.raw_w_OI, context.raw_h_II, config.b_q), config)
    config.check_shape(*context.shape)
    rounder = _Rounder.make(context, config)
    best = _alternate(context, config, rounder, progress) if config.rank else _round_only(context, rounder)
    packed = pack_q(best.q.rounded, config)
    packed["q_scale"] = (rounder.largest.reshape(1) * context.scale).to(torch.float32).cpu()
    packed["q_rows"] = best.q.row_codes_O.to(torch.uint8).cpu()
    if best.factors is not None:
        packed |= pack_factors(best.factors, config)
    return CompressedMatrix(config, context.shape, packed)


@dataclass(frozen=True)
class _Rounder:
    """Rounding with a search of each row's scale by its own H-weighted error.

    A scale from the root mean square alone clips what heavy tails the rotation leaves, and clipped errors align with
    the top directions of H.
    """

    codebook: Codebook
    tail: Codebook
    #: what row codes are relative to, 0-dim, normalised units
    largest: Tensor

    @classmethod
    def make(cls, context: MatrixContext, config: CompressionConfig) -> _Rounder:
        device = context.w_OI.device
        largest = 2 * context.w_OI.square().mean(1).sqrt().amax()
        codebook = get_codebook(config.codebook, config.b_q, device)
        return cls(codebook, get_codebook("scalar", config.b_q, device), largest)

    def natural_codes(self, w_OI: Tensor) -> Tensor:
        """Codes of the rows' root mean squares."""
        return encode_row_scales(w_OI.square().mean(1).sqrt(), self.largest)

    def round(self, w_OI: Tensor, feedback: Feedback, row_codes_O: Tensor, steps: tuple[int, ...]) -> _RoundedRows:
        """Round ``w`` at each of the scales ``steps`` away from ``row_codes_O``; each row keeps its best."""
        rows = w_OI.shape[0]
        codes_CO = torch.stack([shifted(row_codes_O, step) for step in steps])
        scale_CO = decode_row_scales(codes_CO, self.largest)
        stacked = w_OI.repeat(len(steps), 1)
        rounded = ldlq(stacked, feedback, self.codebook, self.tail, scale_CO.reshape(-1))
        if len(steps) == 1:
            return _RoundedRows(rounded, codes_CO[0], scale_CO[0])
        best_O = rounded.weighted_error_O(stacked, feedback).reshape(len(steps), rows).argmin(0)
        at_O = torch.arange(rows, device=w_OI.device)
        pick_O = best_O * rows + at_O
        chosen = Rounded(rounded.parts_PIO[:, :, pick_O], rounded.value_OI[pick_O])
        return _RoundedRows(chosen, codes_CO[best_O, at_O], scale_CO[best_O, at_O])


def _round_only(context: MatrixContext, rounder: _Rounder) -> _Candidate:
    feedback = context.input.feedback(rounder.codebook.block)
    q = rounder.round(context.w_OI, feedback, rounder.natural_codes(context.w_OI), _WIDE_STEPS)
    q = rounder.round(context.w_OI, feedback, q.row_codes_O, _FINAL_STEPS)
    return _Candidate(q, None, None, _error(context, q.rounded.value_OI))


def _alternate(
    context: MatrixContext, config: CompressionConfig, rounder: _Rounder, progress: Progress | None
) -> _Candidate:
    kappa = _KAPPA[min(config.factor_bits_l, config.factor_bits_r)]
    row_codes_O = rounder.natural_codes(context.w_OI)
    directions_Ir = context.input.directions(config.rank)
    low_rank_OI = torch.zeros_like(context.w_OI)
    if min(config.factor_bits_l, config.factor_bits_r) >= _FACTORS_FIRST_BITS:
        scale_O = decode_row_scales(row_codes_O, rounder.largest)
        factors, _ = _fit(context, config, context.w_OI, scale_O, directions_Ir)
        low_rank_OI, directions_Ir = factors.product_OI, _whitened_directions(context, factors)
        row_codes_O = rounder.natural_codes(context.w_OI - low_rank_OI)
    steps: tuple[int, ...] = _WIDE_STEPS
    best: _Candidate | None = None
    stale = 0
    for iteration in range(config.iterations):
        candidate = _step(context, config, rounder, low_rank_OI, directions_Ir, kappa, row_codes_O, steps)
        if progress is not None:
            progress((iteration + 1) / config.iterations)
        stale = 0 if best is None or candidate.error < 0.995 * best.error else stale + 1
        if best is None or candidate.error < best.error:
            best = candidate
        if stale >= _PATIENCE:
            break
        assert candidate.factors is not None
        assert candidate.directions_Ir is not None
        directions_Ir, low_rank_OI = candidate.directions_Ir, candidate.factors.product_OI
        row_codes_O, steps = candidate.q.row_codes_O, _NARROW_STEPS
    assert best is not None
    return best


def _step(
    context: MatrixContext,
    config: CompressionConfig,
    rounder: _Rounder,
    low_rank_OI: Tensor,
    directions_Ir: Tensor,
    kappa: float,
    row_codes_O: Tensor,
    steps: tuple[int, ...],
) -> _Candidate:
    """One outer iteration: Q against the softened Hessian, then L·R against what Q left."""
    feedback = _softened_feedback(context, directions_Ir, kappa, rounder.codebook.block)
    q = rounder.round(context.w_OI - low_rank_OI, feedback, row_codes_O, steps)
    factors, error = _fit(context, config, context.w_OI - q.rounded.value_OI, q.scale_O, directions_Ir)
    return _Candidate(q, factors, _whitened_directions(context, factors), error)


def _fit(
    context: MatrixContext, config: CompressionConfig, a_OI: Tensor, scale_O: Tensor, directions_Ir: Tensor
) -> tuple[Factors, float]:
    """L̂·R̂ of ``a``, warm-started at ``directions``, and the error it leaves."""
    shared = context.input
    return fit_factors(
        a_OI,
        shared.s_II,
        shared.feedback(1),
        scale_O,
        bits_l=config.factor_bits_l,
        bits_r=config.factor_bits_r,
        start_Ik=torch.cat([directions_Ir, shared.start(0)[:, : context.shape[1] - config.rank]], dim=1),
        rank=config.rank,
        rounds=_FACTOR_ROUNDS,
    )


def _whitened_directions(context: MatrixContext, factors: Factors) -> Tensor:
    """V (I, r): orthonormal basis of the whitened input directions that L̂·R̂ corrects, of (R̂ S)ᵀ."""
    return torch.linalg.qr((factors.right.value @ context.input.s_II).T).Q


def _softened_feedback(context: MatrixContext, directions_Ir: Tensor, kappa: float, block: int) -> Feedback:
    """Factorise H' = H − (1 − κ)(S V)(S V)ᵀ + ε·mean(diag H)·I, in float64."""
    corrected = (context.input.s_II @ directions_Ir).to(torch.float64)
    h64 = damped(context.input.h_II, DAMPING)
    return make_feedback(h64 - (1 - kappa) * (corrected @ corrected.T), block)


def _error(context: MatrixContext, w_hat_OI: Tensor) -> float:
    """‖(W − Ŵ) S‖² in normalised, rotated units."""
    return float(((context.w_OI - w_hat_OI) @ context.input.s_II).square().sum())
