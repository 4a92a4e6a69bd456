"""Blocked adaptive rounding: quantise columns in order, feed each block's error forward to the next.

With H = U Uᵀ (U upper triangular) and Ũ = U·blockdiag(U)⁻¹, block k is rounded at w_k + Σ_{j<k} e_j Ũ_jk where
e = w − q. This is LDLQ of QuIP (block form: QuIP#, arXiv 2402.04396 §4, eq. 8); for one-column blocks it equals
GPTQ (arXiv 2210.17323, alg. 1). What far columns are off by reaches a panel of columns in one matrix product, when
its turn comes: nothing but the errors themselves is kept.

Shapes: O = out_features, I = in_features, P = stages of the codebook. w_OI, h_II; *_IO are transposed (contiguous
columns are what the loop reads).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from compress_core.cholesky import lower_factor_
from compress_core.codebooks import Codebook, ScalarCodebook
from compress_core.errors import CalibrationError

#: columns that take in the errors of all columns before them at once
_PANEL = 64
#: diagonal blocks that are inverted at once
_BLOCKS = 64


@dataclass(frozen=True)
class Feedback:
    """The factorised Hessian that rounding needs, for one block width."""

    #: Ũᵀ below the diagonal blocks: the weights with which errors reach later columns. Nothing else of it is read
    unit_t_II: Tensor
    #: width of the leading full blocks; columns after the last full one are single
    block: int


def make_feedback(h_II: Tensor, block: int) -> Feedback:
    """Factorise H (symmetric positive definite, float64 advised) for blocks of ``block`` columns.

    Raises:
        CalibrationError: H is not positive definite.
    """
    feedback = make_feedback_(h_II.clone(memory_format=torch.contiguous_format), block)
    if feedback is None:
        raise CalibrationError("the Hessian is not positive definite, so it gives no feedback: calibrate again")
    return feedback


def make_feedback_(h_II: Tensor, block: int) -> Feedback | None:
    """The same in the memory of H, of which only the lower triangle is read; None if H is not positive definite."""
    if not lower_factor_(h_II):
        return None
    width = h_II.shape[0]
    full = width - width % block
    # rows of block k of Ũᵀ are those of R = Uᵀ, divided by its diagonal block
    for first in range(0, full, _BLOCKS * block):
        rows_RI = h_II[first : min(first + _BLOCKS * block, full)]
        diagonal_KBB = diagonal_blocks(rows_RI[:, first:], block).tril()
        inverse_KBB = torch.linalg.solve_triangular(
            diagonal_KBB, torch.eye(block, dtype=h_II.dtype, device=h_II.device), upper=False
        )
        rows_KBI = rows_RI.view(-1, block, width)
        rows_KBI.copy_(inverse_KBB @ rows_KBI)
    h_II[full:].div_(h_II.diagonal()[full:, None].clone())
    return Feedback(h_II.to(torch.float32), block)


def diagonal_blocks(x_RX: Tensor, block: int) -> Tensor:
    """A copy of the blocks on the diagonal (K, block, block) of a matrix of whole blocks of rows, R ≤ X."""
    count = x_RX.shape[0] // block
    at = torch.arange(count, device=x_RX.device)
    return x_RX[:, : count * block].reshape(count, block, count, block)[at, :, at, :]


@dataclass(frozen=True)
class Rounded:
    """What rounding gives: stages of code values (in units of the scale)."""

    parts_PIO: Tensor
    scale_O: Tensor

    @property
    def value_OI(self) -> Tensor:
        """The values themselves, made anew at each call."""
        return self.value_IO.T

    @property
    def value_IO(self) -> Tensor:
        return total(self.parts_PIO) * self.scale_O

    def subtracted_from(self, w_OI: Tensor) -> Tensor:
        """W without these values."""
        return torch.addcmul(w_OI, total(self.parts_PIO).T, self.scale_O[:, None], value=-1)


def total(parts_PXX: Tensor) -> Tensor:
    """Sum of the stages, without a copy where there is one."""
    return parts_PXX[0] if parts_PXX.shape[0] == 1 else parts_PXX.sum(0)


def panel_width(block: int) -> int:
    """Columns of a panel of whole blocks."""
    return max(_PANEL - _PANEL % block, block)


def nearest_columns(codebook: Codebook, x_BO: Tensor, weight_CR: Tensor) -> Tensor:
    """Stages (P, B, O) of the codewords next to a block of columns; O = C·R rows of C candidates."""
    candidates, rows = weight_CR.shape
    parts_PCRB = codebook.nearest(x_BO.T.reshape(candidates, rows, -1), weight_CR)
    return parts_PCRB.reshape(parts_PCRB.shape[0], candidates * rows, -1).transpose(1, 2)


def scalar_panels() -> ModuleType:
    """Kernels for panels of single columns on the CPU; numba is needed only where weights are compressed."""
    from compress_core.codebooks import scalar_cpu

    return scalar_cpu


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
    error_IO = torch.empty_like(w_IO)
    parts_PIO = w_IO.new_empty(codebook.stages, *w_IO.shape)
    parts_PIO[tail.stages :, full:] = 0  # the tail may have fewer stages
    inverse_O = reciprocal(scale_O)
    weight_CR = (scale_O.square() if weight_O is None else weight_O).reshape(candidates, -1)
    scalar = codebook if isinstance(codebook, ScalarCodebook) and w_OI.device.type == "cpu" else None
    panel = panel_width(block)
    for start in range(0, width, panel):
        stop = min(start + panel, width)
        target_BO = w_IO[start:stop]
        if start:
            target_BO = torch.addmm(target_BO, feedback.unit_t_II[start:stop, :start], error_IO[:start])
        if scalar is not None:
            scalar_panels().round_panel(
                target_BO.numpy(),
                feedback.unit_t_II[start:stop, start:stop].contiguous().numpy(),
                w_IO[start:stop].numpy(),
                scale_O.numpy(),
                inverse_O.numpy(),
                scalar.levels.numpy(),
                scalar.edges.numpy(),
                parts_PIO[0, start:stop].numpy(),
                error_IO[start:stop].numpy(),
            )
            continue
        lo = start
        while lo < stop:
            book = codebook if lo < full else tail
            hi = lo + (block if lo < full else 1)
            x_BO = target_BO[lo - start : hi - start]
            if lo > start:
                x_BO = torch.addmm(x_BO, feedback.unit_t_II[lo:hi, start:lo], error_IO[start:lo])
            parts = nearest_columns(book, x_BO * inverse_O, weight_CR)
            parts_PIO[: parts.shape[0], lo:hi] = parts
            torch.addcmul(w_IO[lo:hi], total(parts), scale_O, value=-1, out=error_IO[lo:hi])
            lo = hi
    return Rounded(parts_PIO, scale_O)
