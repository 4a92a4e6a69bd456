"""SecondMoment: E[x xᵀ] of one input, gathered a chunk of vectors at a time.

The matrix is symmetric, so only panels are held: rows a … b−1, columns a … n−1. That is half of the products and half
of the sum; the float32 product of one panel is all that is held beside it.

Shapes: T tokens, I = in_features, P = rows of a panel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: rows of a panel; part of the numerics, since an input of at most so many features is one product
PANEL_ROWS = 2048


def panel_rows(width: int) -> Iterator[slice]:
    """0 … width in neighbouring slices of PANEL_ROWS."""
    for first in range(0, width, PANEL_ROWS):
        yield slice(first, min(first + PANEL_ROWS, width))


class SecondMoment:
    """E[x xᵀ]: float32 products of chunks, added up in float64 (a float64 GEMM is 1:64 on consumer cards).

    Memory on the device: 4·I² bytes for the sum, from the first vectors on, and PANEL_ROWS·I floats while adding.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.width = width
        #: vectors that were added, stand-ins apart
        self.n_tokens = 0
        self._n_summed = 0
        self._device = device
        self._panels: list[Tensor] = []

    def add(self, x: Tensor, *, stand_in: bool = False) -> None:
        """Add the vectors of x (…, width); stand-ins make an H for an input that is still not ``seen``."""
        x_TI = x.reshape(-1, x.shape[-1]).float()
        if x_TI.shape[0] == 0:
            return
        if not self._panels:
            for rows in panel_rows(self.width):
                shape = (rows.stop - rows.start, self.width - rows.start)
                self._panels.append(torch.zeros(shape, dtype=torch.float64, device=self._device))
        for rows, sum_PI in zip(panel_rows(self.width), self._panels, strict=True):
            sum_PI += x_TI[:, rows].T @ x_TI[:, rows.start :]
        self._n_summed += x_TI.shape[0]
        if not stand_in:
            self.n_tokens += x_TI.shape[0]

    @property
    def seen(self) -> bool:
        """Whether any vector of its own was added."""
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
            mean_PI = self._panels[number] / self._n_summed
            corner_PP = mean_PI[:, :n_rows]
            mean_PI[:, :n_rows] = (corner_PP + corner_PP.T) / 2
            yield rows, mean_PI.float().cpu()

    def mean(self) -> Tensor:
        """H as exactly symmetric (width, width) float32 on the CPU."""
        out_II = torch.empty((self.width, self.width))
        for rows, panel_PI in self.panels():
            out_II[rows, rows.start :] = panel_PI
            out_II[rows.stop :, rows] = panel_PI[:, rows.stop - rows.start :].T
        return out_II
