"""What a tile's weights count for, as the searches of all devices take it."""

from __future__ import annotations

import torch
from torch import Tensor


def root_weights(weight_NT: Tensor) -> Tensor:
    """√(w / mean of the tile's w), float32 (N, T); 1 where all are zero. w ≥ 0 is what a squared error counts for."""
    mean_N1 = weight_NT.to(torch.float32).mean(1, keepdim=True)
    relative_NT = weight_NT.to(torch.float32) / mean_N1
    return torch.where(mean_N1 > 0, relative_NT, torch.ones_like(relative_NT)).sqrt()
