"""Coordinate descent on the codes: round each block once more, given the errors of all the others.

LDLQ rounds a block knowing only the errors before it. A pass of descent rounds it again at the exact minimiser of
tr(D H Dᵀ) given everything else, w_k + (H_kk)⁻¹·Σ_{j≠k} H_kj e_j, and takes the new codewords only where the objective
falls: unlike the tuning passes of QuIP# (arXiv 2307.13304, §A) it can never raise it. H may be singular as a whole
(the directions that L·R corrects may weigh nothing); only its diagonal blocks are inverted.

H is not formed: it is the input's Hessian without what L·R corrects, H' = H − C Cᵀ + damping, and C has few columns.

Shapes: O = out_features, I = in_features, r = rank, P = stages of the codebook, K = blocks of B columns. w_OI, h_II;
*_IO are transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook, ScalarCodebook
from compress_core.ldlq import Rounded, diagonal_blocks, nearest_columns, panel_width, reciprocal, scalar_panels, total
from compress_core.rooted_hessian import RootedHessian

#: ridge of the diagonal blocks, relative to the mean of the diagonal
_RIDGE = 1e-6


@dataclass(frozen=True)
class Curvature:
    """H' = H − C Cᵀ + damping·I, its diagonal blocks and their inverses."""

    root: RootedHessian
    #: C (I, r), or None
    corrected_Ir: Tensor | None
    #: whole diagonal blocks of H', one a panel of columns
    corners: tuple[Tensor, ...]
    #: one (block, block) inverse for each full block
    inverse_KBB: Tensor
    #: reciprocals of the diagonal, for the leftover single columns
    inverse_I: Tensor
    block: int


def make_curvature(
    root: RootedHessian, block: int, corrected_Ir: Tensor | None = None, damping: float = 0.0
) -> Curvature:
    """What descent needs of H − C Cᵀ + damping·mean(diag H)·I (float32, positive semidefinite)."""
    full = root.width - root.width % block
    extra = damping * root.mean
    corners, diagonals = [], []
    for at in _panels(root.width, block):
        corner_BB = root.corner(at)
        if corrected_Ir is not None:
            corner_BB.addmm_(corrected_Ir[at], corrected_Ir[at].T, alpha=-1)
        corner_BB.diagonal().add_(extra)
        corners.append(corner_BB)
        diagonals.append(diagonal_blocks(corner_BB[: max(0, min(at.stop, full) - at.start)], block))
    diagonal_I = torch.cat([corner_BB.diagonal() for corner_BB in corners])
    ridge = _RIDGE * diagonal_I.mean()
    identity_BB = torch.eye(block, dtype=diagonal_I.dtype, device=diagonal_I.device)
    inverse_I = 1 / (diagonal_I + ridge)
    if block == 1:
        return Curvature(root, corrected_Ir, tuple(corners), inverse_I[:, None, None], inverse_I, block)
    inverse_KBB = torch.linalg.inv(torch.cat(diagonals) + ridge * identity_BB)
    return Curvature(root, corrected_Ir, tuple(corners), inverse_KBB, inverse_I, block)


def _panels(width: int, block: int) -> Iterator[slice]:
    size = panel_width(block)
    for first in range(0, width, size):
        yield slice(first, min(first + size, width))


def descend(
    w_OI: Tensor,
    start: Rounded,
    curvature: Curvature,
    codebook: Codebook,
    tail: Codebook,
    candidates: int = 1,
) -> Rounded:
    """One pass over all blocks from ``start``; the arguments are those of ``ldlq``."""
    block, c_Ir, scale_O = curvature.block, curvature.corrected_Ir, start.scale_O
    width = w_OI.shape[1]
    full = width - width % block
    parts_PIO = start.parts_PIO.clone()
    w_IO = w_OI.T.contiguous()
    inverse_O = reciprocal(scale_O)
    weight_CR = scale_O.square().reshape(candidates, -1)
    error_IO = w_IO - start.value_IO
    scalar = codebook if isinstance(codebook, ScalarCodebook) and w_OI.device.type == "cpu" else None
    # Cᵀ e, kept up to date
    carried_rO = None if c_Ir is None else c_Ir.T @ error_IO
    for at, corner_BB in zip(_panels(width, block), curvature.corners, strict=True):
        old_PO = error_IO[at].clone()
        panel_PO = curvature.root.rows_beside(at, error_IO).addmm_(corner_BB, old_PO)
        if c_Ir is not None and carried_rO is not None:
            carried_rO.addmm_(c_Ir[at].T, old_PO, alpha=-1)
            panel_PO.addmm_(c_Ir[at], carried_rO, alpha=-1)
        change_PO = torch.zeros_like(old_PO)
        lo = at.start
        if scalar is not None:
            scalar_panels().descend_panel(
                panel_PO.numpy(),
                corner_BB.numpy(),
                curvature.inverse_I[at].numpy(),
                w_IO[at].numpy(),
                old_PO.numpy(),
                scale_O.numpy(),
                inverse_O.numpy(),
                scalar.levels.numpy(),
                scalar.edges.numpy(),
                parts_PIO[0, at].numpy(),
                change_PO.numpy(),
            )
            lo = at.stop
        while lo < at.stop:
            single = lo >= full
            book = tail if single else codebook
            hi = lo + (1 if single else block)
            inside, before = slice(lo - at.start, hi - at.start), slice(0, lo - at.start)
            gradient_BO = panel_PO[inside]
            if lo > at.start:
                gradient_BO = torch.addmm(gradient_BO, corner_BB[inside, before], change_PO[before])
            # e_k − (H_kk)⁻¹ g_k is minus the step to the minimiser in value space
            inverse_BB = curvature.inverse_I[lo].reshape(1, 1) if single else curvature.inverse_KBB[lo // block]
            old_BO = old_PO[inside]
            step_BO = torch.addmm(-old_BO, inverse_BB, gradient_BO)
            parts = nearest_columns(book, (w_IO[lo:hi] + step_BO) * inverse_O, weight_CR)
            delta_BO = torch.addcmul(w_IO[lo:hi], total(parts), scale_O, value=-1) - old_BO
            # f(e + δ) − f(e) = δᵀ(2 g + H_kk δ)
            slope_BO = torch.addmm(gradient_BO, corner_BB[inside, inside], delta_BO, beta=2)
            gain_O = (slope_BO * delta_BO).sum(0)
            better_O = (book.unit_sums(gain_O.reshape(candidates, -1)).reshape(-1) < 0).to(w_IO.dtype)
            change_PO[inside] = delta_BO * better_O
            parts_PIO[: parts.shape[0], lo:hi].lerp_(parts, better_O)
            lo = hi
        error_IO[at] += change_PO
        if c_Ir is not None and carried_rO is not None:
            carried_rO.addmm_(c_Ir[at].T, error_IO[at])
    return Rounded(parts_PIO, scale_O)
