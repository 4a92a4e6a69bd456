"""Round to nearest, a row at a time: the baseline. No rotation, no Hessian, no feedback.

Each row has 2^b levels (k + ½)·s, k = −2^(b−1) … 2^(b−1) − 1, with s = absmax / 2^(b−1) in float16. All 2^b levels
are used: at 2 bits that is several times better than the common {−s, 0, s}, so the baseline is not a straw man.

Shapes: O = out_features, I = in_features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rtn_scales(w_OI: Tensor, bits: int) -> Tensor:
    """Step of each row, float16 (O,); saturates at the largest float16 (65504), and is zero below the least (3e-8)."""
    step_O = w_OI.abs().amax(1) / 2 ** (bits - 1)
    return step_O.clamp(max=65504.0).to(torch.float16)


def rtn_codes(w_OI: Tensor, scales_O: Tensor, bits: int) -> Tensor:
    """Codes 0 … 2^bits − 1, int32 (O, I)."""
    step_O1 = scales_O.to(torch.float32)[:, None]
    unit = torch.where(step_O1 > 0, w_OI / step_O1, torch.zeros_like(w_OI))
    half = 2 ** (bits - 1)
    return (unit.floor().clamp(-half, half - 1) + half).to(torch.int32)


def rtn_units(codes_OI: Tensor, bits: int) -> Tensor:
    """float32 (O, I) values of the codes in units of the steps."""
    return codes_OI.to(torch.float32) - (2 ** (bits - 1) - 0.5)


def rtn_values(codes_OI: Tensor, scales_O: Tensor, bits: int) -> Tensor:
    """float32 (O, I) values of the codes."""
    return rtn_units(codes_OI, bits) * scales_O.to(torch.float32)[:, None]
