"""Coordinate descent on the codes: round each block once more, given the errors of all the others.

LDLQ rounds a block knowing only the errors before it. A pass of descent rounds it again at the exact minimiser of
tr(D H Dᵀ) given everything else, w_k + (H_kk)⁻¹·Σ_{j≠k} H_kj e_j, and takes the new codewords only where the objective
falls: unlike the tuning passes of QuIP# (arXiv 2307.13304, §A) it can never raise it. H may be singular as a whole
(the directions that L·R corrects may weigh nothing); only its diagonal blocks are inverted.

Shapes: O = out_features, I = in_features, P = stages of the codebook. w_OI, h_II; *_IO are transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook
from compress_core.ldlq import Rounded, nearest_columns, panel_width, reciprocal

#: ridge of the diagonal blocks, relative to the mean of the diagonal
_RIDGE = 1e-6


@dataclass(frozen=True)
class Curvature:
    """H and the inverses of its diagonal blocks."""

    h_II: Tensor
    #: one (block, block) inverse for each full block
    inverse_KBB: Tensor
    #: reciprocals of the diagonal, for the leftover single columns
    inverse_I: Tensor
    block: int


def make_curvature(h_II: Tensor, block: int) -> Curvature:
    """What descent needs of H (float32, positive semidefinite)."""
    width = h_II.shape[0]
    count = width // block
    full = count * block
    at = torch.arange(count, device=h_II.device)
    diagonal_KBB = h_II[:full, :full].reshape(count, block, count, block)[at, :, at, :]
    ridge = _RIDGE * h_II.diagonal().mean()
    inverse_KBB = torch.linalg.inv(diagonal_KBB + ridge * torch.eye(block, dtype=h_II.dtype, device=h_II.device))
    return Curvature(h_II, inverse_KBB, 1 / (h_II.diagonal() + ridge), block)


def descend(
    w_OI: Tensor,
    start: Rounded,
    curvature: Curvature,
    codebook: Codebook,
    tail: Codebook,
    scale_O: Tensor,
    candidates: int = 1,
) -> Rounded:
    """One pass over all blocks from ``start``; the arguments are those of ``ldlq``."""
    h_II, block = curvature.h_II, curvature.block
    width = w_OI.shape[1]
    full = width - width % block
    parts_PIO = start.parts_PIO.clone()
    w_IO = w_OI.T.contiguous()
    inverse_O = reciprocal(scale_O)
    weight_CR = scale_O.square().reshape(candidates, -1)
    error_IO = w_IO - start.value_OI.T
    gradient_IO = h_II @ error_IO
    change_IO = torch.zeros_like(w_IO)
    panel = panel_width(block)
    for first in range(0, width, panel):
        stop = min(first + panel, width)
        lo = first
        while lo < stop:
            single = lo >= full
            book = tail if single else codebook
            hi = lo + (1 if single else block)
            gradient_BO = gradient_IO[lo:hi]
            if lo > first:
                gradient_BO = torch.addmm(gradient_BO, h_II[lo:hi, first:lo], change_IO[first:lo])
            # e_k − (H_kk)⁻¹ g_k is minus the step to the minimiser in value space
            inverse_BB = curvature.inverse_I[lo].reshape(1, 1) if single else curvature.inverse_KBB[lo // block]
            old_BO = error_IO[lo:hi]
            step_BO = torch.addmm(-old_BO, inverse_BB, gradient_BO)
            parts = nearest_columns(book, (w_IO[lo:hi] + step_BO) * inverse_O, weight_CR)
            value = parts[0] if parts.shape[0] == 1 else parts.sum(0)
            delta_BO = torch.addcmul(w_IO[lo:hi], value, scale_O, value=-1) - old_BO
            # f(e + δ) − f(e) = δᵀ(2 g + H_kk δ)
            slope_BO = torch.addmm(gradient_BO, h_II[lo:hi, lo:hi], delta_BO, beta=2)
            gain_O = (slope_BO * delta_BO).sum(0)
            better_O = (book.unit_sums(gain_O.reshape(candidates, -1)).reshape(-1) < 0).to(w_IO.dtype)
            change_IO[lo:hi] = delta_BO * better_O
            stages = parts.shape[0]
            parts_PIO[:stages, lo:hi].lerp_(parts, better_O)
            lo = hi
        error_IO[first:stop] += change_IO[first:stop]
        if stop < width:
            gradient_IO[stop:].addmm_(h_II[stop:, first:stop], change_IO[first:stop])
    return Rounded(parts_PIO, (parts_PIO.sum(0) * scale_O).T)
