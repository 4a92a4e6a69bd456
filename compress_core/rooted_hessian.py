"""A Hessian and its root in one square.

Both are half empty or half repetition: H = S Sᵀ is symmetric and S upper triangular. So H lives above the diagonal of
one square, Sᵀ on and below it, and the diagonal of H beside it. At a width of 29568 a square is 3.5 GB.

Shapes: I = in_features, X = any, P = columns of a panel. *_II, *_IX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress_core.cholesky import lower_factor_

#: rows or columns of the products that leave a triangle out
_PANEL = 512
#: rows of the products that leave out more of it, where there are many columns to multiply
_FINE_PANEL = 128
#: up to this width factorisations are in float64, and kept for the next config: beyond, there is no room for either
EXACT_WIDTH = 4096


def factor_dtype(width: int) -> torch.dtype:
    """float64 where a square of it is small."""
    return torch.float64 if width <= EXACT_WIDTH else torch.float32


def panels(width: int) -> Iterator[slice]:
    """0 … width in neighbouring slices."""
    for first in range(0, width, _PANEL):
        yield slice(first, min(first + _PANEL, width))


@dataclass(frozen=True)
class RootedHessian:
    """H (float32, symmetric, positive semidefinite) and S upper triangular, S Sᵀ = H + a tiny damping."""

    #: strictly above the diagonal H, on and below it Sᵀ
    square_II: Tensor
    #: diag(H)
    diagonal_I: Tensor
    _triangles: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def width(self) -> int:
        return self.square_II.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of diag(H), 0-dim float32."""
        return self.diagonal_I.to(torch.float64).mean().to(torch.float32)

    def factorise_(self, extra: Tensor) -> bool:
        """Make S, S Sᵀ = H + extra·I, in the place of any S there was; whether there is one."""
        self._triangles.clear()
        if factor_dtype(self.width) != self.square_II.dtype:
            h_II = self.lower_hessian()
            h_II.diagonal().add_(extra)
            sound = lower_factor_(h_II)
            self.square_II.copy_(h_II.tril_().to(self.square_II.dtype).add_(self.square_II.triu(1)))
            return sound
        for at in panels(self.width):
            self.square_II[at, : at.start] = self.square_II[: at.start, at].T
            self.square_II[at, at] = self.corner(at)
        self.square_II.diagonal().add_(extra)
        return lower_factor_(self.square_II)

    def lower_hessian(self) -> Tensor:
        """A new square with H on and below the diagonal, in the dtype for factorising; above it, numbers of no use."""
        h_II = torch.empty_like(self.square_II, dtype=factor_dtype(self.width)).copy_(self.square_II.T)
        h_II.diagonal().copy_(self.diagonal_I)
        return h_II

    def corner(self, at: slice) -> Tensor:
        """A diagonal block of H, whole."""
        upper_BB = self.square_II[at, at].triu(1)
        return upper_BB + upper_BB.T + torch.diag(self.diagonal_I[at])

    def rows_beside(self, at: slice, x_IX: Tensor) -> Tensor:
        """Rows ``at`` of H·x, without what the diagonal block adds to them: (rows, X)."""
        product = self.square_II[at, at.stop :] @ x_IX[at.stop :]
        return product.addmm_(self.square_II[: at.start, at].T, x_IX[: at.start]) if at.start else product

    def times_root(self, x_XI: Tensor) -> Tensor:
        """x S."""
        out_XI = torch.empty_like(x_XI, memory_format=torch.contiguous_format)
        for at in panels(self.width):
            product_XP = x_XI[:, at] @ self._triangle(at).T
            if at.start:
                product_XP.addmm_(x_XI[:, : at.start], self.square_II[at, : at.start].T)
            out_XI[:, at] = product_XP
        return out_XI

    def root_transposed_times(self, x_IX: Tensor) -> Tensor:
        """Sᵀ x."""
        return torch.cat([self._rows_times(at, slice(0, _PANEL), x_IX) for at in panels(self.width)])

    def root_times(self, x_IX: Tensor) -> Tensor:
        """S x."""
        out_IX = torch.zeros_like(x_IX)
        for at in panels(self.width):
            torch.matmul(self._triangle(at).T, x_IX[at], out=out_IX[at])
            if at.start:
                out_IX[: at.start].addmm_(self.square_II[at, : at.start].T, x_IX[at])
        return out_IX

    def solve_root(self, x_IX: Tensor) -> Tensor:
        """(Sᵀ)⁻¹ x."""
        return torch.linalg.solve_triangular(self.square_II, x_IX, upper=False)

    def energies(self, x_IX: Tensor) -> Tensor:
        """x H xᵀ (X,) of each column x of ``x_IX``, by the root: never negative."""
        total_X = torch.zeros_like(x_IX[0])
        for at in panels(self.width):
            for first in range(0, _PANEL, _FINE_PANEL):
                total_X += self._rows_times(at, slice(first, first + _FINE_PANEL), x_IX).square_().sum(0)
        return total_X

    def _rows_times(self, at: slice, rows: slice, x_IX: Tensor) -> Tensor:
        """Some ``rows`` of those ``at`` of Sᵀ, times x, as far as they are not zero."""
        triangle_RP = self._triangle(at)[rows]
        stop = min(rows.stop, at.stop - at.start)
        product_RX = triangle_RP[:, :stop] @ x_IX[at.start : at.start + stop]
        return product_RX.addmm_(self.square_II[at, : at.start][rows], x_IX[: at.start]) if at.start else product_RX

    def _triangle(self, at: slice) -> Tensor:
        """A diagonal block of Sᵀ without what is above the diagonal; kept, since every product needs it."""
        if at.start not in self._triangles:
            self._triangles[at.start] = self.square_II[at, at].tril()
        return self._triangles[at.start]
