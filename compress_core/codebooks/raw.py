"""Raw: a matrix left as it is, in 16 bits a weight. No rotation, no Hessian, no scale; lossless for 16-bit weights.

A weight of another type is stored as bfloat16 or as float16, whichever loses less (bfloat16 where both lose the same).

Shapes: O = out_features, I = in_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.codebooks.base import even_strips

#: what the byte ``q_type`` says about the 16-bit words beside it
TYPES = (torch.bfloat16, torch.float16)
#: weights that are compared at once
_STRIP = 1 << 20


def raw_values(w_OI: Tensor) -> Tensor:
    """A float32 matrix as bfloat16 or float16 (O, I); what bfloat16 cannot hold (above 3.39e38) becomes its largest."""
    bfloat16, float16 = TYPES
    return w_OI.to(float16) if _loss(w_OI, float16) < _loss(w_OI, bfloat16) else _as_bfloat16(w_OI)


def raw_type(values_OI: Tensor) -> int:
    """Which of ``TYPES`` these values have."""
    return TYPES.index(values_OI.dtype)


def _as_bfloat16(w_OI: Tensor) -> Tensor:
    largest = torch.finfo(torch.bfloat16).max
    return w_OI.clamp(-largest, largest).to(torch.bfloat16)


def _loss(w_OI: Tensor, dtype: torch.dtype) -> float:
    """Sum of squared errors; infinite where a weight exceeds what ``dtype`` can hold."""
    loss = 0.0
    for strip in even_strips(w_OI.shape[0], max(1, _STRIP // w_OI.shape[1])):
        rows = w_OI[strip]
        stored = _as_bfloat16(rows) if dtype == torch.bfloat16 else rows.to(dtype)
        loss += float((rows - stored.to(torch.float32)).to(torch.float64).square().sum())
    return loss
