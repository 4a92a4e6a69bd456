"""Low-rank factors: A ≈ L·R under the Hessian, with both factors quantised.

CALDERA's LPLR step (arXiv 2405.18886, alg. 2 and eq. 8) alternates between the factors. Here each factor is the
least-squares answer to the other one *as quantised*, and is itself rounded with feedback (ldlq) against the Hessian
that it sees: R against H, L against R̂ H R̂ᵀ.

Shapes: O = out_features, I = in_features, r = rank, C = candidate scales. a_OI, l_Or, r_rI; H = S Sᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.codebooks import Codebook, codebook_for, get_codebook
from compress_core.ldlq import Feedback, ldlq, make_feedback, reciprocal
from compress_core.rooted_hessian import RootedHessian

#: columns beyond the rank in a subspace iteration
_OVERSAMPLE = 8
#: ridge of the small least-squares systems, relative to their mean diagonal
_RIDGE = 1e-6
#: candidate scales of a factor's component, as multiples of its root mean square; at 8 bits clipping is all that hurts
_SCALE_MULTIPLES = {
    4: (0.85, 1.0, 1.15, 1.35, 1.7, 2.4),
    8: (1.0, 1.4, 2.0, 2.8, 4.0, 6.0, 10.0, 18.0),
}
_FLOAT16_MAX = 65504.0
#: bits from which a factor is stored as float16 values instead of codes
FLOAT_BITS = 16


@dataclass(frozen=True)
class FactorCode:
    """How factors are stored."""

    bits_l: int
    bits_r: int
    #: codebook of Q, and its states
    codebook: str
    states: int


def factor_codebook(rows: int, bits: int, codebook: str, states: int, device: torch.device) -> Codebook:
    """Codebook of a factor of so many rows: the trellis where Q has it, at 4 bits and from 16 rows on; else scalar."""
    name = "trellis" if codebook == "trellis" and bits == 4 else "scalar"
    return codebook_for(rows, name, bits, device, states)


#: relative noise of factors in float16
_FLOAT16_NOISE = 2.0**-22
#: mean squared errors in multiples of Shannon's bound 4^−bits, near enough for δ
_OVER_SHANNON = {"trellis": 1.4, "scalar": 2.5}
#: how much of R's noise the fit of L to the rounded R leaves, as measured (L's own noise stays, and a fifth more)
_LEFT_SHARE, _RIGHT_SHARE = 1.2, 0.1


def factor_noise(code: FactorCode, out_features: int, rank: int) -> float:
    """δ: the error that quantising adds, relative to the energy ‖L R S‖² of the product."""

    def mse(rows: int, bits: int) -> float:
        if bits == FLOAT_BITS:
            return _FLOAT16_NOISE
        codebook = factor_codebook(rows, bits, code.codebook, code.states, torch.device("cpu"))
        return _OVER_SHANNON[codebook.name] * 4.0**-bits

    return _LEFT_SHARE * mse(out_features, code.bits_l) + _RIGHT_SHARE * mse(rank, code.bits_r)


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

    def subtracted_from(self, a_OI: Tensor) -> Tensor:
        """A − diag(row scale)·L̂·R̂."""
        return torch.addmm(a_OI, self.left.value * self.scale_O[:, None], self.right.value, alpha=-1)

    def image(self, x_IX: Tensor) -> Tensor:
        """diag(row scale)·L̂·R̂·x."""
        return (self.left.value * self.scale_O[:, None]) @ (self.right.value @ x_IX)


@dataclass(frozen=True)
class Leading:
    """The leading right singular directions of a linear map, as far as an iteration has found them."""

    #: orthonormal (I, r), the leading one first
    directions_Ir: Tensor
    #: what the map makes of them
    image_Or: Tensor


def leading(
    times: Callable[[Tensor], Tensor],
    transposed_times: Callable[[Tensor], Tensor],
    rank: int,
    start_Ik: Tensor,
    rounds: int,
) -> Leading:
    """Subspace iteration from ``start_Ik``, k ≥ rank columns."""
    basis_Ik = start_Ik
    for _ in range(rounds):
        basis_Ik, _ = torch.linalg.qr(transposed_times(times(basis_Ik)))
    # order the subspace: rotate onto the singular directions inside it
    image_Ok = times(basis_Ik)
    _, vectors_kk = torch.linalg.eigh((image_Ok.T @ image_Ok).to(torch.float64))
    vectors_kr = vectors_kk.flip(1)[:, :rank].to(basis_Ik.dtype)
    return Leading(basis_Ik @ vectors_kr, image_Ok @ vectors_kr)


def random_start(width: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """Gaussian (width, min(rank + oversampling, width)), from a CPU generator: the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(2**31 + seed)
    return torch.randn(width, min(rank + _OVERSAMPLE, width), generator=generator).to(device)


def _half(x: Tensor) -> Tensor:
    """Rounded to float16, saturating instead of overflowing."""
    return x.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).to(torch.float16)


def quantize_right(r_rI: Tensor, codebook: Codebook, feedback: Feedback) -> QuantizedFactor:
    """R̂, rounded with feedback against H; one scale a row."""
    scales_r = component_scales(r_rI, codebook.bits)
    rounded = ldlq(r_rI, feedback, codebook, codebook, scales_r.float())
    return QuantizedFactor(rounded.value_OI, codebook.codes(rounded.parts_PIO.transpose(1, 2)), scales_r)


def quantize_left(l_Or: Tensor, codebook: Codebook, gram_rr: Tensor, scale_O: Tensor) -> QuantizedFactor:
    """L̂ of diag(row scale)·L̂ ≈ L, rounded with feedback against the Gram matrix R̂ H R̂ᵀ; one scale a column."""
    l_Or = l_Or * reciprocal(scale_O)[:, None]
    weight_O = scale_O.square()
    scales_r = component_scales(l_Or.T, codebook.bits, weight_O)
    scale_r = scales_r.float()
    feedback = make_feedback(_regularized(gram_rr * scale_r[:, None] * scale_r), codebook.block)
    ones_O = torch.ones_like(scale_O)
    rounded = ldlq(l_Or * reciprocal(scale_r), feedback, codebook, codebook, ones_O, weight_O=weight_O)
    return QuantizedFactor(rounded.value_OI * scale_r, codebook.codes(rounded.parts_PIO.transpose(1, 2)), scales_r)


def component_scales(x_rX: Tensor, bits: int, weight_X: Tensor | None = None) -> Tensor:
    """Scale of each row, float16 (r,), out of multiples of its root mean square, by (weighted) squared error.

    Tried with single weights whatever the codebook: all are made for the same source.
    """
    scalar = get_codebook("scalar", bits, x_rX.device)
    weight_X = torch.ones_like(x_rX[0]) if weight_X is None else weight_X
    rms_r = ((x_rX.square() * weight_X).sum(1) * reciprocal(weight_X.sum())).sqrt()
    multiples = torch.tensor(_SCALE_MULTIPLES[bits], device=x_rX.device)
    scale_Cr = multiples[:, None] * rms_r
    value_CrX = scalar.nearest(x_rX * reciprocal(scale_Cr)[..., None])[0] * scale_Cr[..., None]
    error_CrX = value_CrX.sub_(x_rX).square_().mul_(weight_X)
    return _half(multiples[error_CrX.sum(-1).argmin(0)] * rms_r)


def decode_factor(codes: Tensor, scales_r: Tensor, codebook: Codebook, *, component_dim: int) -> Tensor:
    """Values of stored codes; the same products as in quantisation, so bit-equal."""
    values = codebook.decode(codes)
    scale_r = scales_r.float()
    return values * (scale_r[:, None] if component_dim == 0 else scale_r)


def gram(x_rX: Tensor) -> Tensor:
    """X Xᵀ in float64: positive semidefinite to float64 rounding, which a float32 product is not."""
    x64 = x_rX.to(torch.float64)
    return x64 @ x64.T


def _regularized(gram_rr: Tensor) -> Tensor:
    """With a relative ridge: positive definite even for a zero matrix."""
    mean = gram_rr.diagonal().mean()
    ridge = torch.where(mean > 0, _RIDGE * mean, torch.ones_like(mean))
    return gram_rr + ridge * torch.eye(gram_rr.shape[0], dtype=gram_rr.dtype, device=gram_rr.device)


def solve(gram_rr: Tensor, right_rX: Tensor) -> Tensor:
    """(gram + ridge)⁻¹ · right for a positive semidefinite gram, solved in float64, returned in float32."""
    root = torch.linalg.cholesky(_regularized(gram_rr))
    return torch.cholesky_solve(right_rX.to(torch.float64), root).to(torch.float32)


@dataclass(frozen=True)
class LowRank:
    """The best rank-r L·R of A under H, not quantised: L orthonormal, R = Lᵀ A."""

    left_Or: Tensor
    right_rI: Tensor
    #: V: whitened input directions that L·R corrects, orthonormal
    directions_Ir: Tensor

    def subtracted_from(self, a_OI: Tensor) -> Tensor:
        """A − L·R."""
        return torch.addmm(a_OI, self.left_Or, self.right_rI, alpha=-1)


def best_low_rank(a_OI: Tensor, root: RootedHessian, start_Ik: Tensor, rank: int, rounds: int) -> LowRank:
    """Minimise ‖(A − L R) S‖²: the leading singular directions of A S (Eckart-Young), by subspace iteration.

    Args:
        start_Ik: start of the iteration in whitened input coordinates, k ≥ rank columns.
    """
    found = leading_of_product(a_OI, root, start_Ik, rank, rounds)
    left_Or, _ = torch.linalg.qr(found.image_Or)
    return LowRank(left_Or, left_Or.T @ a_OI, found.directions_Ir)


def leading_of_product(a_OI: Tensor, root: RootedHessian, start_Ik: Tensor, rank: int, rounds: int) -> Leading:
    """The leading directions of A S."""

    # A S itself would cost more products than its images of few vectors, and the memory of another A
    def times(x_Ik: Tensor) -> Tensor:
        return a_OI @ root.root_times(x_Ik)

    def transposed_times(x_Ok: Tensor) -> Tensor:
        return root.root_transposed_times(a_OI.T @ x_Ok)

    return leading(times, transposed_times, rank, start_Ik, rounds)


def quantize_factors(
    a_OI: Tensor,
    root: RootedHessian,
    feedback_of: Callable[[int], Feedback],
    low: LowRank,
    scale_O: Tensor,
    code: FactorCode,
) -> Factors:
    """diag(row scale)·L̂·R̂ ≈ A under H, from its best L·R.

    R is fitted anew to the rounded L before it is rounded itself; L then to the rounded R.

    Args:
        feedback_of: factorisation of the (regularised) H by block width.
        scale_O: scale of each row, as stored.
    """
    rank = low.right_rI.shape[0]
    right_rI = low.right_rI
    if code.bits_l < FLOAT_BITS:
        # the left factor of the best L·R is the least-squares answer to the right one already
        codebook = factor_codebook(a_OI.shape[0], code.bits_l, code.codebook, code.states, a_OI.device)
        rounded = quantize_left(low.left_Or, codebook, gram(root.times_root(right_rI)), scale_O)
        scaled_Or = rounded.value * scale_O[:, None]
        right_rI = solve(gram(scaled_Or.T), scaled_Or.T @ a_OI)
    if code.bits_r == FLOAT_BITS:
        right = QuantizedFactor(_half(right_rI).float(), None, None)
    else:
        codebook = factor_codebook(rank, code.bits_r, code.codebook, code.states, a_OI.device)
        right = quantize_right(right_rI, codebook, feedback_of(codebook.block))
    return Factors(_left(right.value, root, a_OI, code, scale_O), right, scale_O)


def _left(right_rI: Tensor, root: RootedHessian, a_OI: Tensor, code: FactorCode, scale_O: Tensor) -> QuantizedFactor:
    """L̂ of the least-squares answer to a given R: A S (R S)ᵀ ((R S)(R S)ᵀ)⁻¹, rounded."""
    whitened_rI = root.times_root(right_rI)
    gram_rr = gram(whitened_rI)
    l_Or = solve(gram_rr, root.root_times(whitened_rI.T).T @ a_OI.T).T
    if code.bits_l == FLOAT_BITS:
        return QuantizedFactor(_half(l_Or * reciprocal(scale_O)[:, None]).float(), None, None)
    codebook = factor_codebook(l_Or.shape[0], code.bits_l, code.codebook, code.states, l_Or.device)
    return quantize_left(l_Or, codebook, gram_rr, scale_O)
