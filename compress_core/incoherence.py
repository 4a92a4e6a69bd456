"""Incoherence processing: a randomised orthogonal change of basis for any width.

Random signs, then a Kronecker product of normalised Hadamard matrices with one Hartley matrix of the odd part
of the width (the idea of QuIP#, arXiv 2402.04396 §3, carried to every width n = 2^k·q). Both are symmetric,
orthogonal and their own inverse, and both are closed forms: no random matrix, no LAPACK. Only the signs are
random; they follow from the seed and come from a CPU generator, so every device has the same.

Only the input side is rotated. QuIP# rotates both sides; with a scale a row (see row_scales) rotating the outputs
as well gains nothing on Gaussian-like weights and loses up to 3× in error on real q and k projections, whose rows
differ tenfold in norm: mixing them makes every row heavy-tailed.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: entries of a Hessian that are rotated at once
_STRIP = 1 << 23
#: widest Hadamard factor that is applied as one matrix product
_WIDEST_FACTOR = 128
#: columns from which many small products are as fast as one large one
_NARROW = 16


def split_width(width: int) -> tuple[int, int]:
    """``width = power · odd`` with power = 2^k and odd q.

    Raises:
        ValueError: width < 1.
    """
    if width < 1:
        raise ValueError(f"a width must be at least 1, not {width}")
    power = width & -width
    return power, width // power


def hadamard_matrix(size: int) -> Tensor:
    """Normalised Walsh-Hadamard matrix (size, size), float64; size must be a power of two."""
    if size & (size - 1) or size < 1:
        raise ValueError(f"a Walsh-Hadamard matrix needs a power of two, not {size}")
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(size)


def hartley_matrix(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Discrete Hartley matrix cas(2πjk/q)/√q, (size, size): symmetric, orthogonal, self-inverse.

    The angle is reduced exactly, by (j·k mod q) in integers, so large sizes lose nothing. A model's widths have small
    odd parts (29568 = 2^7·231, 18944 = 2^9·37); a prime width would make this matrix as large as its Hessian.
    """
    index = torch.arange(size, dtype=torch.int64)
    matrix = torch.empty(size, size, dtype=dtype)
    for rows, into in zip(*(x.split(max(1, _STRIP // size)) for x in (index, matrix)), strict=True):
        angle = torch.outer(rows, index).remainder_(size).to(torch.float64) * (2.0 * math.pi / size)
        into.copy_((torch.cos(angle) + torch.sin(angle)) / math.sqrt(size))
    return matrix


@lru_cache(maxsize=32)
def _factors(width: int, device: torch.device) -> tuple[Tensor, ...]:
    """The Kronecker factors of the transform of this width, float32, in order."""
    power, odd = split_width(width)
    factors = []
    while power > 1:
        size = min(power, _WIDEST_FACTOR)
        factors.append(hadamard_matrix(size))
        power //= size
    if odd > 1:
        factors.append(hartley_matrix(odd, torch.float32))
    return tuple(f.to(device=device, dtype=torch.float32) for f in factors)


def orthogonal_transform(x: Tensor) -> Tensor:
    """Apply the closed-form orthogonal transform to the last dimension of ``x`` (float32). Its own inverse."""
    width = x.shape[-1]
    out = x.reshape(-1, width)
    sizes = [f.shape[0] for f in _factors(width, x.device)]
    for i, factor in enumerate(_factors(width, x.device)):
        after = math.prod(sizes[i + 1 :])
        # the factor is symmetric: left and right products are the same map of its axis
        block = out.reshape(-1, factor.shape[0], after)
        out = _times(factor, block)
    return out.reshape(x.shape)


def _times(factor: Tensor, block: Tensor) -> Tensor:
    """The product of a symmetric factor with the middle dimension of a block."""
    if block.shape[2] == 1:
        return block.squeeze(-1) @ factor
    if block.shape[2] < _NARROW <= factor.shape[0]:
        # small products of few columns are slow one by one: all in one, transposed
        return (block.transpose(1, 2).reshape(-1, factor.shape[0]) @ factor).view_as(block.mT).mT
    return factor @ block


def _random_signs(count: int, seed: int, device: torch.device) -> Tensor:
    """±1 float32 (count,), from a CPU generator: the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(device=device, dtype=torch.float32)


@dataclass(frozen=True)
class InputRotation:
    """The change of basis of one input: T·diag(signs) on width ``in_features``."""

    signs_I: Tensor

    @classmethod
    def make(cls, in_features: int, seed: int, device: torch.device) -> InputRotation:
        return cls(_random_signs(in_features, seed, device))

    def rotate(self, x_XI: Tensor) -> Tensor:
        """Rotate the last dimension of ``x``."""
        return orthogonal_transform(x_XI * self.signs_I)

    def unrotate(self, x_XI: Tensor) -> Tensor:
        """Inverse of :meth:`rotate`."""
        return orthogonal_transform(x_XI) * self.signs_I

    def rotate_columns_(self, half_II: Tensor) -> None:
        """Rotate the columns of what has its rows rotated already, in place, and make it symmetric to the last bit."""
        strips = half_II.split(max(1, _STRIP // half_II.shape[0]), dim=1)
        for strip_IX in strips:
            strip_IX.copy_(self.rotate(strip_IX.T.contiguous()).T)
        last = 0
        for strip_IX in strips:
            first, last = last, last + strip_IX.shape[1]
            below_IX = strip_IX[first:]
            right_XI = half_II[first:last, first:]
            mean_IX = (below_IX + right_XI.T) / 2
            below_IX.copy_(mean_IX)
            right_XI.copy_(mean_IX.T)

    def rotate_hessian(self, h_II: Tensor) -> Tensor:
        """T S H S T, symmetric by construction."""
        rotated_II = self.rotate(h_II)
        self.rotate_columns_(rotated_II)
        return rotated_II
