"""Low-rank factors: A ≈ L·R under the Hessian, with both factors quantised.

CALDERA's LPLR step (arXiv 2405.18886, alg. 2 and eq. 8) alternates between the factors. Here each factor is the
least-squares answer to the other one *as quantised*, and is itself rounded with feedback (ldlq) against the Hessian
that it sees: R against H, L against R̂ H R̂ᵀ.

Shapes: O = out_features, I = in_features, r = rank. a_OI, s_II (H = S Sᵀ, lower triangular), l_Or, r_rI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import get_codebook
from compress_core.errors import NonFiniteValues
from compress_core.ldlq import Feedback, ldlq, make_feedback, reciprocal

#: columns beyond the rank in a subspace iteration
_OVERSAMPLE = 8
#: ridge of the small least-squares systems, relative to their mean diagonal
_RIDGE = 1e-6
#: candidate scales of a factor's component, as multiples of its root mean square
_SCALE_MULTIPLES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.45, 1.7, 2.1, 2.7)
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class QuantizedFactor:
    """A factor as stored: codes and a float16 scale a component, or float16 values (16 bits)."""

    #: float32 values, exactly what the stored form decodes to
    value: Tensor
    #: int32 codes of the same shape, or None at 16 bits
    codes: Tensor | None
    #: float16 (r,), or None at 16 bits
    scales_r: Tensor | None


@dataclass(frozen=True)
class Factors:
    """diag(row scale)·L̂·R̂ with L̂ (O, r) and R̂ (r, I)."""

    left: QuantizedFactor
    right: QuantizedFactor
    scale_O: Tensor

    @property
    def product_OI(self) -> Tensor:
        return (self.left.value @ self.right.value) * self.scale_O[:, None]


def top_directions(x_XI: Tensor, rank: int, start_Ik: Tensor, rounds: int) -> Tensor:
    """Orthonormal (I, rank) basis of the leading right singular directions of ``x``, by subspace iteration."""
    basis = start_Ik
    for _ in range(rounds):
        basis, _ = torch.linalg.qr(x_XI.T @ (x_XI @ basis))
    # order the subspace: rotate onto the singular directions inside it
    image = x_XI @ basis
    _, vectors = torch.linalg.eigh((image.T @ image).to(torch.float64))
    return basis @ vectors.flip(1)[:, :rank].to(basis.dtype)


def random_start(width: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """Gaussian (width, min(rank + oversampling, width)), from a CPU generator: the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(2**31 + seed)
    return torch.randn(width, min(rank + _OVERSAMPLE, width), generator=generator).to(device)


def component_scales(x_rX: Tensor, bits: int, weight_X: Tensor | None = None) -> Tensor:
    """Scale of each row by (weighted) squared error, out of multiples of its root mean square; float32 (r,)."""
    codebook = get_codebook("scalar", bits, x_rX.device)
    rms_r = x_rX.square().mean(1).sqrt()
    multiples = torch.tensor(_SCALE_MULTIPLES, device=x_rX.device)
    scale_Cr = multiples[:, None] * rms_r
    value_CrX = codebook.nearest(x_rX * reciprocal(scale_Cr)[..., None])[0] * scale_Cr[..., None]
    error_CrX = (value_CrX - x_rX).square_()
    if weight_X is not None:
        error_CrX *= weight_X
    return multiples[error_CrX.sum(-1).argmin(0)] * rms_r


def _half(x: Tensor) -> Tensor:
    """Rounded to float16, saturating instead of overflowing."""
    return x.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).to(torch.float16)


def quantize_right(r_rI: Tensor, bits: int, feedback: Feedback) -> QuantizedFactor:
    """R̂, rounded with feedback against H; one scale a row."""
    if bits == 16:
        return QuantizedFactor(_half(r_rI).float(), None, None)
    codebook = get_codebook("scalar", bits, r_rI.device)
    scales_r = _half(component_scales(r_rI, bits))
    rounded = ldlq(r_rI, feedback, codebook, codebook, scales_r.float())
    return QuantizedFactor(rounded.value_OI, codebook.codes(rounded.parts_PIO).T, scales_r)


def quantize_left(l_Or: Tensor, bits: int, gram_rr: Tensor, scale_O: Tensor) -> QuantizedFactor:
    """L̂ of diag(row scale)·L̂ ≈ L, rounded with feedback against the Gram matrix R̂ H R̂ᵀ; one scale a column."""
    l_Or = l_Or * reciprocal(scale_O)[:, None]
    if bits == 16:
        return QuantizedFactor(_half(l_Or).float(), None, None)
    codebook = get_codebook("scalar", bits, l_Or.device)
    scales_r = _half(component_scales(l_Or.T, bits, scale_O.square()))
    scale_r = scales_r.float()
    scaled_rr = _regularized(gram_rr * scale_r[:, None] * scale_r)
    ones_O = torch.ones_like(scale_O)
    rounded = ldlq(l_Or * reciprocal(scale_r), make_feedback(scaled_rr, 1), codebook, codebook, ones_O)
    return QuantizedFactor(rounded.value_OI * scale_r, codebook.codes(rounded.parts_PIO).T, scales_r)


def decode_factor(codes: Tensor, scales_r: Tensor, bits: int, *, component_dim: int) -> Tensor:
    """Values of stored codes; the same products as in quantisation, so bit-equal."""
    values = get_codebook("scalar", bits, codes.device).decode(codes)
    scale_r = scales_r.float()
    return values * (scale_r[:, None] if component_dim == 0 else scale_r)


def _gram(x_rX: Tensor) -> Tensor:
    """X Xᵀ in float64: positive semidefinite to float64 rounding, which a float32 product is not."""
    x64 = x_rX.to(torch.float64)
    return x64 @ x64.T


def _regularized(gram_rr: Tensor) -> Tensor:
    """With a relative ridge: positive definite even for a zero matrix."""
    mean = gram_rr.diagonal().mean()
    ridge = torch.where(mean > 0, _RIDGE * mean, torch.ones_like(mean))
    return gram_rr + ridge * torch.eye(gram_rr.shape[0], dtype=gram_rr.dtype, device=gram_rr.device)


def _solve(gram_rr: Tensor, right_rX: Tensor) -> Tensor:
    """(gram + ridge)⁻¹ · right, solved in float64, returned in float32."""
    root = torch.linalg.cholesky(_regularized(gram_rr))
    return torch.cholesky_solve(right_rX.to(torch.float64), root).to(torch.float32)


def fit_factors(
    a_OI: Tensor,
    s_II: Tensor,
    feedback: Feedback,
    scale_O: Tensor,
    *,
    bits_l: int,
    bits_r: int,
    start_Ik: Tensor,
    rank: int,
    rounds: int,
) -> tuple[Factors, float]:
    """diag(row scale)·L̂·R̂ ≈ A under H, and the error ‖(A − …) S‖² it leaves.

    Args:
        feedback: factorisation of the (regularised) H for single columns.
        scale_O: scale of each row, as stored.
        start_Ik: start of the subspace iteration in whitened input coordinates, k ≥ rank columns.
        rounds: refits of R, unrounded, to L̂ before both are rounded; only the last rounding of R needs a column loop.

    Raises:
        NonFiniteValues: the factors overflowed.
    """
    image_OI = a_OI @ s_II
    directions_Ir = top_directions(image_OI, rank, start_Ik, rounds=2)
    left_Or, _ = torch.linalg.qr(image_OI @ directions_Ir)
    right_rI = left_Or.T @ a_OI
    for _ in range(rounds):
        scaled_Or = _quantized_left(right_rI, s_II, image_OI, bits_l, scale_O).value * scale_O[:, None]
        right_rI = _solve(_gram(scaled_Or.T), scaled_Or.T @ a_OI)
    right = quantize_right(right_rI, bits_r, feedback)
    left = _quantized_left(right.value, s_II, image_OI, bits_l, scale_O)
    factors = Factors(left, right, scale_O)
    error = float(((a_OI - factors.product_OI) @ s_II).square().sum())
    if not math.isfinite(error):
        raise NonFiniteValues("low-rank factors overflowed: the Hessian spans too many orders of magnitude")
    return factors, error


def _quantized_left(right_rI: Tensor, s_II: Tensor, image_OI: Tensor, bits: int, scale_O: Tensor) -> QuantizedFactor:
    """L̂ of the least-squares answer to a given R: (A S)(R S)ᵀ ((R S)(R S)ᵀ)⁻¹, rounded."""
    whitened_rI = right_rI @ s_II
    gram_rr = _gram(whitened_rI)
    return quantize_left(_solve(gram_rr, whitened_rI @ image_OI.T).T, bits, gram_rr, scale_O)
