"""SecondMoment: E[x xᵀ] of one input, gathered a chunk of vectors at a time.

The matrix is symmetric, so only panels are held: rows a … b−1, columns a … n−1. That is half of the products and half
of the sum; the float32 product of one panel is all that is held beside it.

Shapes: T tokens, I = in_features, P = rows of a panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: rows of a panel; part of the numerics, since an input of at most so many features is one product
PANEL_ROWS = 2048
#: rows that are converted at once; without effect on results
_BLOCK_ROWS = 256


def panel_rows(width: int) -> Iterator[slice]:
    """0 … width in neighbouring slices of PANEL_ROWS."""
    for first in range(0, width, PANEL_ROWS):
        yield slice(first, min(first + PANEL_ROWS, width))


def is_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, without a copy of ``values``."""
    for block in values.split(_BLOCK_ROWS):
        low, high = torch.aminmax(block)
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
    return True


class SecondMoment:
    """E[x xᵀ]: float32 products of chunks, added up in float64 (a float64 GEMM is 1:64 on consumer cards).

    Memory on the device: 4·I² bytes for the sum, from the first vectors on, and PANEL_ROWS·I floats while adding.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.width = width
        #: vectors that were added
        self.n_tokens = 0
        #: what the sum is divided by: these, and what it leans on
        self._weight = 0.0
        self._device = device
        self._panels: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Add the vectors of x (…, width)."""
        x_TI = x.reshape(-1, x.shape[-1]).float()
        if x_TI.shape[0] == 0:
            return
        self._begin()
        for rows, sum_PI in zip(panel_rows(self.width), self._panels, strict=True):
            product_PI = x_TI[:, rows].T @ x_TI[:, rows.start :]
            # a sum of two dtypes makes a copy in the wider one
            for sum_BI, product_BI in zip(sum_PI.split(_BLOCK_ROWS), product_PI.split(_BLOCK_ROWS), strict=True):
                sum_BI += product_BI
        self._weight += x_TI.shape[0]
        self.n_tokens += x_TI.shape[0]

    def lean_on(self, other: SecondMoment, weight: float) -> None:
        """Let the mean of another moment count as much as ``weight`` vectors; ``n_tokens`` stays what it is."""
        self._begin()
        for sum_PI, other_PI in zip(self._panels, other._panels, strict=True):
            for sum_BI, other_BI in zip(sum_PI.split(_BLOCK_ROWS), other_PI.split(_BLOCK_ROWS), strict=True):
                sum_BI += other_BI * (weight / other._weight)
        self._weight += weight

    def _begin(self) -> None:
        if not self._panels:
            for rows in panel_rows(self.width):
                shape = (rows.stop - rows.start, self.width - rows.start)
                self._panels.append(torch.zeros(shape, dtype=torch.float64, device=self._device))

    @property
    def seen(self) -> bool:
        """Whether any vector was added."""
        return self.n_tokens > 0

    def panels(self) -> Iterator[tuple[slice, Tensor]]:
        """H in float32 on the CPU: the rows of each panel, and (P, I − first row) from the first row's diagonal on.

        Each panel begins with a square that is exactly symmetric. Without any vectors H is the identity: nothing is
        known of the input, and no direction is better than another.
        """
        for number, rows in enumerate(panel_rows(self.width)):
            n_rows = rows.stop - rows.start
            if not self._panels:
                yield rows, torch.eye(n_rows, self.width - rows.start)
                continue
            sum_PI = self._panels[number]
            mean_PI = torch.empty(sum_PI.shape)
            for mean_BI, sum_BI in zip(mean_PI.split(_BLOCK_ROWS), sum_PI.split(_BLOCK_ROWS), strict=True):
                mean_BI.copy_((sum_BI / self._weight).float())
            corner_PP = sum_PI[:, :n_rows] / self._weight
            mean_PI[:, :n_rows] = ((corner_PP + corner_PP.T) / 2).float().cpu()
            yield rows, mean_PI
            del mean_PI  # before the next one is made

    def mean(self) -> Tensor:
        """H as exactly symmetric (width, width) float32 on the CPU."""
        out_II = torch.empty((self.width, self.width))
        for rows, panel_PI in self.panels():
            out_II[rows, rows.start :] = panel_PI
            out_II[rows.stop :, rows] = panel_PI[:, rows.stop - rows.start :].T
        return out_II
