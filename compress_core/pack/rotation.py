"""The input rotation for activations: the transform of ``compress_core.incoherence`` as two large products.

Weights are rotated once and slowly; activations are rotated in every forward pass. So the Kronecker factors are
regrouped into two of about the same size, and each is applied as one product over the last axis. The two axes change
places after each product, so that in the end they are in their old order.

Shapes: T = tokens, I = in_features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from compress_core.incoherence import InputRotation, hadamard_matrix, hartley_matrix, split_width

#: activations that are rotated at once on the CPU: what is in between stays in the cache
_STRIP = 1 << 17


@dataclass(frozen=True)
class ActivationRotation:
    """z = T·(σ ∘ x) for many tokens at once, equal to ``InputRotation.rotate`` within float32 rounding."""

    signs_I: Tensor
    #: two symmetric float32 matrices whose Kronecker product is T
    factors: tuple[Tensor, Tensor]

    def rotate(self, x_TI: Tensor) -> Tensor:
        most = max(1, _STRIP // x_TI.shape[1])
        if x_TI.device.type != "cpu" or x_TI.shape[0] <= most:
            return self._rotate(x_TI)
        return torch.cat([self._rotate(strip) for strip in x_TI.split(most)])

    def _rotate(self, x_TI: Tensor) -> Tensor:
        z_TI = x_TI * self.signs_I
        for factor in reversed(self.factors):
            z_TXF = z_TI.reshape(x_TI.shape[0], x_TI.shape[1] // factor.shape[0], factor.shape[0]) @ factor
            z_TI = z_TXF.transpose(1, 2).reshape(x_TI.shape)
        return z_TI


@lru_cache(maxsize=64)
def activation_rotation(in_features: int, seed: int, device: torch.device) -> ActivationRotation:
    """The rotation of one input, remembered: many layers share it."""
    # tables that inference mode made could not take part in a later backward pass
    with torch.inference_mode(False):
        signs_I = InputRotation.make(in_features, seed, device).signs_I
        high, low = (f.to(device=device, dtype=torch.float32) for f in _factors(in_features))
        return ActivationRotation(signs_I, (high, low))


def _factors(width: int) -> tuple[Tensor, Tensor]:
    """Two symmetric matrices, as equal in size as possible, whose Kronecker product is the transform."""
    power, odd = split_width(width)
    exponent = power.bit_length() - 1
    # 2^(exponent − low) next to 2^low · odd
    low = min(range(exponent + 1), key=lambda low: abs(exponent - 2 * low - math.log2(odd)))
    return hadamard_matrix(1 << (exponent - low)), torch.kron(hadamard_matrix(1 << low), hartley_matrix(odd))
