"""What is computed once for a matrix and shared by all its configs.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from compress_core.errors import CalibrationError, NonFiniteValues
from compress_core.incoherence import InputRotation
from compress_core.ldlq import Feedback, make_feedback_
from compress_core.lowrank import FactorCode, leading, random_start
from compress_core.rooted_hessian import EXACT_WIDTH, RootedHessian, panels
from compress_core.rounding import RoundedRows

#: weights that are rotated at once
_STRIP = 1 << 22
#: the least float32: a root mean square below it could neither be divided by nor stored
_LEAST = 2.0**-149
#: ε: what rounding adds to the diagonal of H, relative to its mean (GPTQ uses 1e-2)
DAMPING = 1e-3
#: what the square root S adds: just enough for a singular H; and more where rounding (of a bfloat16 H, or of a large
#: one, which is factorised in float32) asks for it. An H that needs more than that is no E[x xᵀ]
_ROOT_DAMPING = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: how much more damping may be tried where rounding in float32 has made a softened Hessian indefinite
_FEEDBACK_LADDER = (1.0, 10.0, 100.0)

#: directions (and a few more) by which errors are estimated
_PROBES = 64

_NOT_SEMIDEFINITE = "the Hessian is not positive semidefinite, so it is no E[x xᵀ]: calibrate again"

#: a Hessian (in_features, in_features); or what loads it, so that it need not be in memory all the time; None: identity
Hessian = Tensor | Callable[[], Tensor] | None


def loaded(hessian: Hessian) -> Tensor | None:
    """The Hessian itself."""
    return hessian() if callable(hessian) else hessian


def damped_level(root: RootedHessian) -> Tensor:
    """det(H + DAMPING)^(1/n), to first order: the pivots of S with the damping added to each."""
    return (root.square_II.diagonal().to(torch.float64).square() + DAMPING).log().mean().exp()


@dataclass
class InputContext:
    """One input (in_features wide) and its Hessian, rotated and factorised; q, k and v share one."""

    seed: int
    device: torch.device
    rotation: InputRotation
    #: rotated, mean diagonal 1 (identity where H is None or zero), and its root S
    root: RootedHessian
    #: det(H)^(1/n): what rounding with feedback leaves per weight, for unit codebook error (QuIP, arXiv 2307.13304)
    level: float = 1.0
    _feedback: dict[int, Feedback] = field(default_factory=dict)
    _directions: dict[int, Tensor] = field(default_factory=dict)

    def feedback(self, block: int) -> Feedback:
        """Factorisation of H + ε for blocks of ``block`` columns; kept where it is small."""
        if block in self._feedback:
            return self._feedback[block]
        made = self.softened_feedback(block, None, 1.0, DAMPING)
        if self.keeps_factors:
            self._feedback[block] = made
        return made

    @property
    def keeps_factors(self) -> bool:
        """Whether there is room for squares that the next config may need."""
        return self.root.width <= EXACT_WIDTH

    def softened_feedback(self, block: int, corrected_Ir: Tensor | None, kappa: float, damping: float) -> Feedback:
        """Factorisation of H − (1 − κ)·C Cᵀ + damping·mean(diag H)·I for blocks of ``block`` columns.

        Raises:
            CalibrationError: with a hundredfold damping it is not positive definite either.
        """
        for more in _FEEDBACK_LADDER:
            h_II = self.root.lower_hessian()
            h_II.diagonal().add_(more * damping * h_II.diagonal().mean())
            if corrected_Ir is not None:
                corrected_Ir = corrected_Ir.to(h_II.dtype)
                h_II.addmm_(corrected_Ir, corrected_Ir.T, alpha=kappa - 1)
            feedback = make_feedback_(h_II, block)
            if feedback is not None:
                return feedback
            del h_II  # before the next try makes another square
        raise CalibrationError(_NOT_SEMIDEFINITE)

    @cached_property
    def probes_Ip(self) -> Tensor:
        """S·Ω·√(I/p) for random orthonormal columns Ω: ‖X·probes‖² is ‖X S‖² to a few per cent."""
        random_Ip = random_start(self.root.width, _PROBES, self.seed + 1, self.device)
        probes_Ip = torch.linalg.qr(random_Ip)[0]
        return self.root.root_times(probes_Ip) * math.sqrt(probes_Ip.shape[0] / probes_Ip.shape[1])

    def start(self, rank: int) -> Tensor:
        """Random start of a subspace iteration."""
        return random_start(self.root.width, rank, self.seed, self.device)

    def directions(self, rank: int) -> Tensor:
        """Leading ``rank`` right singular directions of S (whitened input coordinates), (I, rank)."""
        if rank not in self._directions:
            root = self.root
            found = leading(root.root_times, root.root_transposed_times, rank, self.start(rank), rounds=6)
            self._directions[rank] = found.directions_Ir
        return self._directions[rank]


def prepare_input(hessian: Hessian, in_features: int, seed: int, device: torch.device) -> InputContext:
    """Rotate and factorise a Hessian; in memory are it and one square, and that square alone afterwards.

    Raises:
        NonFiniteValues: NaN or infinity in H.
        CalibrationError: H is not positive semidefinite.
        ValueError: H is not (in_features, in_features).
    """
    rotation = InputRotation.make(in_features, seed, device)
    square_II = _rotated(hessian, rotation, in_features, device)
    if square_II is None:
        ones_I = torch.ones(in_features, device=device)
        return InputContext(seed, device, rotation, RootedHessian(torch.eye(in_features, device=device), ones_I))
    root = _rooted(square_II)
    return InputContext(seed, device, rotation, root, float(damped_level(root)))


def _rotated(hessian: Hessian, rotation: InputRotation, in_features: int, device: torch.device) -> Tensor | None:
    """H with mean diagonal 1 in the rotated basis; None for the identity and for zero."""
    h_II = loaded(hessian)
    if h_II is None:
        return None
    if h_II.shape != (in_features, in_features):
        raise ValueError(f"a weight of width {in_features} needs a Hessian of that size, not {tuple(h_II.shape)}")
    h_II = h_II.detach()
    if not all(bool(torch.isfinite(h_II[at]).all()) for at in panels(in_features)):
        raise NonFiniteValues("the Hessian has NaN or infinite entries: calibrate again, a retry with it cannot help")
    if not any(bool(h_II[at].any()) for at in panels(in_features)):
        return None
    mean = float(h_II.diagonal().to(torch.float64).mean())
    if mean <= 0:
        raise CalibrationError(_NOT_SEMIDEFINITE)
    square_II = torch.empty(in_features, in_features, device=device)
    for at in panels(in_features):
        # half-precision sums need not be symmetric
        rows_PI = h_II[at].to(device, torch.float64) + h_II[:, at].T.to(device, torch.float64)
        square_II[at] = rotation.rotate((rows_PI / (2 * mean)).to(torch.float32))
    del h_II  # what was loaded for this is let go before the factorisation
    rotation.rotate_columns_(square_II)
    return square_II


def _rooted(square_II: Tensor) -> RootedHessian:
    """H and S with S Sᵀ = H + the least damping (of a short ladder) that factorises, in the square of H itself.

    Where rounding has made H as indefinite as that, the H kept has the damping in it.

    Raises:
        CalibrationError: none of the ladder does.
    """
    root = RootedHessian(square_II, square_II.diagonal().clone())
    mean = root.mean
    for share in _ROOT_DAMPING:
        if root.factorise_(share * mean):
            if share > DAMPING / 2:  # below, what rounding adds anyway makes up for it
                root.diagonal_I.add_(share * mean)
            return root
    raise CalibrationError(_NOT_SEMIDEFINITE)


@dataclass(frozen=True)
class Start:
    """Q at rank 0, from which the configs of all ranks take their row scales."""

    q: RoundedRows
    #: steps by which the chosen scales exceed the rows' root mean squares
    offset_O: Tensor
    error: float


@dataclass(frozen=True)
class Softening:
    """What the configs of one rank share whatever their b_q: what L·R will correct, and the feedback without it."""

    rank: int
    code: FactorCode
    #: V: leading right singular directions of W S, orthonormal
    directions_Ir: Tensor
    #: Vᵀ S⁻¹, its Gram matrix in float64, and W·(Vᵀ S⁻¹)ᵀ
    right_rI: Tensor
    gram_rr: Tensor
    share_Or: Tensor
    #: by block; empty where it would be large
    feedback: dict[int, Feedback] = field(default_factory=dict)


@dataclass
class MatrixContext:
    """One matrix in the rotated basis, with unit root mean square, and its input."""

    #: the weight as given, float32
    raw_w_OI: Tensor
    hessian: Hessian
    input: InputContext
    #: rotated, root mean square 1 (or all zero)
    w_OI: Tensor
    #: root mean square of the weight; one too small for float32 counts as zero
    scale: float
    #: Q of rank 0, by codebook, bits and states
    starts: dict[tuple[str, int, int], Start] = field(default_factory=dict)
    #: of the rank in hand: configs that differ in b_q alone had better come one after another
    softening: Softening | None = None

    @cached_property
    def energy(self) -> Tensor:
        """‖W‖² in normalised units, 0-dim float64."""
        return sum_of_squares(self.w_OI)

    def error(self, w_hat_OI: Tensor) -> float:
        """‖(W − Ŵ) S‖² in normalised, rotated units."""
        return float(self.input.root.energies((self.w_OI - w_hat_OI).T).to(torch.float64).sum())

    @property
    def raw_h_II(self) -> Tensor | None:
        """The Hessian as given, loaded anew where the caller gave what loads it."""
        return loaded(self.hessian)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.raw_w_OI.shape[0], self.raw_w_OI.shape[1])


def checked_weight(weight: Tensor, device: torch.device) -> Tensor:
    """The weight as a contiguous float32 matrix on ``device``.

    Raises:
        NonFiniteValues: NaN or infinity.
        ValueError: not a matrix of floats, or an empty one.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(f"a weight is a non-empty matrix of floats, not {weight.dtype} {tuple(weight.shape)}")
    w_OI = weight.detach().to(device=device, dtype=torch.float32).contiguous()
    if not bool(torch.isfinite(w_OI).all()):
        raise NonFiniteValues("the weight has NaN or infinite entries: the checkpoint is damaged, a retry cannot help")
    return w_OI


def prepare_matrix(
    weight: Tensor, hessian: Hessian, seed: int, device: torch.device, shared: InputContext | None = None
) -> MatrixContext:
    """Check, rotate and normalise a weight; ``shared`` is the context of the same H and seed, where there is one."""
    w_OI = checked_weight(weight, device)
    if shared is None:
        shared = prepare_input(hessian, w_OI.shape[1], seed, device)
    scale = math.sqrt(float(sum_of_squares(w_OI)) / w_OI.numel())
    rotated_OI = torch.zeros_like(w_OI)
    if scale < _LEAST:
        scale = 0.0
    if scale > 0:
        for rows_RI, into_RI in zip(_strips(w_OI), _strips(rotated_OI), strict=True):
            into_RI.copy_(shared.rotation.rotate(rows_RI / scale))
    return MatrixContext(w_OI, hessian, shared, rotated_OI, scale)


def sum_of_squares(w_OI: Tensor) -> Tensor:
    """‖W‖², 0-dim float64."""
    return torch.stack([rows_RI.to(torch.float64).square().sum() for rows_RI in _strips(w_OI)]).sum()


def _strips(w_OI: Tensor) -> tuple[Tensor, ...]:
    """Views of neighbouring rows, so that temporaries stay small."""
    return w_OI.split(max(1, _STRIP // w_OI.shape[1]))
