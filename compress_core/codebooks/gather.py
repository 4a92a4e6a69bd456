"""Table look-up for whole matrices of codes, in strips: 64-bit copies of all indices would cost more than it does."""

from __future__ import annotations

import torch
from torch import Tensor

#: codes that are looked up at once: their 32-bit copy stays in the cache
_STRIP = 1 << 18


def gather(table: Tensor, codes: Tensor) -> Tensor:
    """``table[codes]``, shape codes.shape + table.shape[1:], for integer codes of any type."""
    flat = codes.reshape(-1)
    values = torch.empty((flat.numel(), *table.shape[1:]), dtype=table.dtype, device=table.device)
    for strip, into in zip(flat.split(_STRIP), values.split(_STRIP), strict=True):
        torch.index_select(table, 0, strip.to(torch.int32), out=into)
    return values.reshape(*codes.shape, *table.shape[1:])
