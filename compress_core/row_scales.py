"""One scale a row in one byte: a float32 for the matrix times 2^(−code/16).

Rows are independent in adaptive rounding, so each row takes the scale that serves its own H-weighted error best. A
step of 2^(1/16) = 4.4 % is finer than that optimum is sharp; float16 would cost twice the bytes for nothing.

Shapes: O = out_features.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 16
#: the code of a row whose scale is exactly zero
ZERO_CODE = 255


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    values = [2.0 ** (-code / STEPS_PER_OCTAVE) for code in range(ZERO_CODE)]
    return torch.tensor([*values, 0.0], dtype=torch.float32, device=device)


def encode_row_scales(scale_O: Tensor, largest: Tensor) -> Tensor:
    """Codes int64 (O,) of the stored scales next to ``scale_O`` (in the logarithm), relative to ``largest`` (0-dim)."""
    ratio = torch.where(largest > 0, scale_O / largest, torch.zeros_like(scale_O))
    code = (-STEPS_PER_OCTAVE * torch.log2(ratio)).round()
    return torch.where(ratio > 0, code.clamp(0, ZERO_CODE - 1), torch.full_like(code, ZERO_CODE)).to(torch.int64)


def decode_row_scales(code_O: Tensor, largest: Tensor) -> Tensor:
    """Scales float32 (O,)."""
    return _table(code_O.device)[code_O.long()] * largest


def shifted(code_O: Tensor, steps: int | Tensor) -> Tensor:
    """Codes of scales 2^(steps/16) times as large, as far as the range goes; zero stays zero."""
    return torch.where(code_O == ZERO_CODE, code_O, (code_O - steps).clamp(0, ZERO_CODE - 1))
