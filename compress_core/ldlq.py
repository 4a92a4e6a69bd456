"""Blocked adaptive rounding: quantise columns in order, feed each block's error forward to the next.

With H = U Uᵀ (U upper triangular) and Ũ = U·blockdiag(U)⁻¹, block k is rounded at w_k + Σ_{j<k} e_j Ũ_jk where
e = w − q. This is LDLQ of QuIP (block form: QuIP#, arXiv 2402.04396 §4, eq. 8); for one-column blocks it equals
GPTQ (arXiv 2210.17323, alg. 1). Updates of far columns are gathered into one matrix product per panel, as in GPTQ.

Shapes: O = out_features, I = in_features, P = stages of the codebook. w_OI, h_II; *_IO are transposed (contiguous
columns are what the loop reads).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook

#: columns between two updates of everything to the right
_PANEL = 64


@dataclass(frozen=True)
class Feedback:
    """The factorised Hessian that rounding needs, for one block width."""

    #: Ũᵀ: strictly below the diagonal blocks, the weights with which errors reach later columns
    unit_t_II: Tensor
    #: Uᵀ, so that tr(D H Dᵀ) = ‖Uᵀ·Dᵀ‖²
    root_t_II: Tensor
    #: width of the leading full blocks; columns after the last full one are single
    block: int


def upper_root(h_II: Tensor) -> Tensor:
    """U upper triangular with H = U Uᵀ, in the dtype of ``h_II``; H must be positive definite.

    Raises:
        torch.linalg.LinAlgError: H is not positive definite.
    """
    return torch.linalg.cholesky(h_II.flip(0, 1)).flip(0, 1)


def make_feedback(h_II: Tensor, block: int) -> Feedback:
    """Factorise H (positive definite, float64 advised) for blocks of ``block`` columns."""
    root_II = upper_root(h_II)
    width = h_II.shape[0]
    full = width - width % block
    unit_II = torch.empty_like(root_II)
    if full:
        count = full // block
        at = torch.arange(count, device=h_II.device)
        diagonal = root_II[:full, :full].reshape(count, block, count, block)[at, :, at, :]
        inverse = torch.linalg.solve_triangular(
            diagonal, torch.eye(block, dtype=h_II.dtype, device=h_II.device).expand_as(diagonal), upper=True
        )
        columns = root_II[:, :full].reshape(width, count, block).transpose(0, 1)
        unit_II[:, :full] = (columns @ inverse).transpose(0, 1).reshape(width, full)
    if full < width:
        unit_II[:, full:] = root_II[:, full:] / root_II.diagonal()[full:]
    return Feedback(
        unit_t_II=unit_II.T.to(torch.float32).contiguous(),
        root_t_II=root_II.T.to(torch.float32).contiguous(),
        block=block,
    )


@dataclass(frozen=True)
class Rounded:
    """What rounding gives: stages of code values (in units of the scale) and the values themselves."""

    parts_PIO: Tensor
    value_OI: Tensor

    def weighted_error_O(self, w_OI: Tensor, feedback: Feedback) -> Tensor:
        """diag(D H Dᵀ) (O,): each row's squared error weighted by the Hessian of ``feedback``."""
        return (feedback.root_t_II @ (w_OI - self.value_OI).T).square().sum(0)


def panel_width(block: int) -> int:
    """Columns of a panel of whole blocks."""
    return max(_PANEL - _PANEL % block, block)


def nearest_columns(codebook: Codebook, x_BO: Tensor, weight_CR: Tensor) -> Tensor:
    """Stages (P, B, O) of the codewords next to a block of columns; O = C·R rows of C candidates."""
    candidates, rows = weight_CR.shape
    parts_PCRB = codebook.nearest(x_BO.T.reshape(candidates, rows, -1), weight_CR)
    return parts_PCRB.reshape(parts_PCRB.shape[0], candidates * rows, -1).transpose(1, 2)


def reciprocal(x: Tensor) -> Tensor:
    """1/x where x > 0, else 0."""
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def ldlq(
    w_OI: Tensor,
    feedback: Feedback,
    codebook: Codebook,
    tail: Codebook,
    scale_O: Tensor,
    candidates: int = 1,
    weight_O: Tensor | None = None,
) -> Rounded:
    """Round ``w`` (float32) to ``codebook`` with feedback; leftover single columns use ``tail``.

    Args:
        scale_O: what the source's unit deviation is, a row; 0 gives zeros.
        candidates: the rows are that many matrices below each other: a tile of the codebook spans rows of one.
        weight_O: what a row's squared error in units of its scale counts for; default: the scale's square.
    """
    width = w_OI.shape[1]
    block = feedback.block
    full = width - width % block
    w_IO = w_OI.T.contiguous()
    target_IO = w_IO.clone()
    error_IO = torch.empty_like(w_IO)
    parts_PIO = w_IO.new_zeros(codebook.stages, *w_IO.shape)
    inverse_O = reciprocal(scale_O)
    weight_CR = (scale_O.square() if weight_O is None else weight_O).reshape(candidates, -1)
    panel = panel_width(block)
    for start in range(0, width, panel):
        stop = min(start + panel, width)
        lo = start
        while lo < stop:
            book = codebook if lo < full else tail
            hi = lo + (block if lo < full else 1)
            x_BO = target_IO[lo:hi]
            if lo > start:
                x_BO = torch.addmm(x_BO, feedback.unit_t_II[lo:hi, start:lo], error_IO[start:lo])
            parts = nearest_columns(book, x_BO * inverse_O, weight_CR)
            parts_PIO[: parts.shape[0], lo:hi] = parts
            value = parts[0] if parts.shape[0] == 1 else parts.sum(0)
            torch.addcmul(w_IO[lo:hi], value, scale_O, value=-1, out=error_IO[lo:hi])
            lo = hi
        if stop < width:
            target_IO[stop:].addmm_(feedback.unit_t_II[stop:, start:stop], error_IO[start:stop])
    return Rounded(parts_PIO, (parts_PIO.sum(0) * scale_O).T)
