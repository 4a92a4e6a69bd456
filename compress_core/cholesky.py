"""H = Rᵀ R with R lower triangular, in place: the factorisation of rounding from the first column to the last.

Rᵀ is the upper triangular U of H = U Uᵀ (QuIP, arXiv 2307.13304, eq. 5). LAPACK has H = L Lᵀ only: for this one H would
have to be turned upside down and back, which takes two more squares. In blocks from the bottom up it takes none, runs
on any device, and leaves the other triangle alone, in which H may go on living.

Shapes: I = in_features. *_II.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: rows that are made at once
_BLOCK = 512


def lower_factor_(h_II: Tensor) -> bool:
    """Overwrite the lower triangle of a symmetric H with R, H = Rᵀ R; what is above the diagonal is neither read nor
    written.

    Returns:
        Whether H is positive definite (to rounding); if not, the lower triangle holds nothing of use.
    """
    width = h_II.shape[0]
    for first in reversed(range(0, width, _BLOCK)):
        last = min(first + _BLOCK, width)
        rows = h_II[first:last, :last]
        if last < width:
            corner_BB = h_II[first:last, first:last].triu(1)
            rows.addmm_(h_II[last:, first:last].T, h_II[last:, :last], alpha=-1)
            # the product covers the whole corner, of which the upper half is not ours
            h_II[first:last, first:last] = h_II[first:last, first:last].tril() + corner_BB
        root_BB, sound = _corner_factor(h_II[first:last, first:last])
        if not sound:
            return False
        h_II[first:last, first:last] = root_BB + h_II[first:last, first:last].triu(1)
        if first:
            left = h_II[first:last, :first]
            left.copy_(torch.linalg.solve_triangular(root_BB.T, left, upper=True))
    return True


def _corner_factor(corner_BB: Tensor) -> tuple[Tensor, bool]:
    """R of a small block, from its lower triangle, in float64; and whether there is one."""
    lower_BB = corner_BB.tril().to(torch.float64)
    full_BB = lower_BB + lower_BB.tril(-1).T
    root_BB, info = torch.linalg.cholesky_ex(full_BB.flip(0, 1))
    return root_BB.flip(0, 1).T.to(corner_BB.dtype).contiguous(), int(info) == 0
