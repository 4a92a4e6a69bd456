"""What is computed once for a matrix and shared by all its configs.

Shapes: O = out_features, I = in_features. w_OI, h_II.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress_core.errors import CalibrationError, NonFiniteValues
from compress_core.incoherence import InputRotation
from compress_core.ldlq import Feedback, make_feedback
from compress_core.lowrank import random_start, top_directions
from compress_core.rounding import RoundedRows

#: ε: what rounding adds to the diagonal of H, relative to its mean (GPTQ uses 1e-2)
DAMPING = 1e-3
#: what the square root S adds: just enough for a singular H
_ROOT_DAMPING = 1e-6
#: the most that rounding (of a bfloat16 H, say) can ask for; an H that needs more is no E[x xᵀ]
_MOST_ROOT_DAMPING = 0.1

_NOT_SEMIDEFINITE = "the Hessian is not positive semidefinite, so it is no E[x xᵀ]: calibrate again"


def damped(h_II: Tensor, share: float) -> Tensor:
    """H + share·mean(diag H)·I in float64."""
    h64 = h_II.to(torch.float64)
    return h64 + share * h64.diagonal().mean() * torch.eye(h64.shape[0], dtype=h64.dtype, device=h64.device)


def damped_level(s_II: Tensor) -> Tensor:
    """det(H + DAMPING)^(1/n), to first order: the pivots of S with the damping added to each."""
    return (s_II.diagonal().to(torch.float64).square() + DAMPING).log().mean().exp()


@dataclass
class InputContext:
    """One input (in_features wide) and its Hessian, rotated and factorised; q, k and v share one."""

    seed: int
    device: torch.device
    rotation: InputRotation
    #: rotated, mean diagonal 1 (identity where H is None or zero)
    h_II: Tensor
    #: lower triangular, H + tiny = S Sᵀ
    s_II: Tensor
    #: det(H)^(1/n): what rounding with feedback leaves per weight, for unit codebook error (QuIP, arXiv 2307.13304)
    level: float = 1.0
    _feedback: dict[int, Feedback] = field(default_factory=dict)
    _directions: dict[int, Tensor] = field(default_factory=dict)

    def feedback(self, block: int) -> Feedback:
        """Factorisation of H + ε for blocks of ``block`` columns."""
        if block not in self._feedback:
            self._feedback[block] = make_feedback(damped(self.h_II, DAMPING), block)
        return self._feedback[block]

    def start(self, rank: int) -> Tensor:
        """Random start of a subspace iteration."""
        return random_start(self.h_II.shape[0], rank, self.seed, self.device)

    def directions(self, rank: int) -> Tensor:
        """Leading ``rank`` right singular directions of Sᵀ (whitened input coordinates), (I, rank)."""
        if rank not in self._directions:
            self._directions[rank] = top_directions(self.s_II, rank, self.start(rank), rounds=6)
        return self._directions[rank]


def prepare_input(h_II: Tensor | None, in_features: int, seed: int, device: torch.device) -> InputContext:
    """Rotate and factorise a Hessian.

    Raises:
        NonFiniteValues: NaN or infinity in H.
        CalibrationError: H is not positive semidefinite.
        ValueError: H is not (in_features, in_features).
    """
    rotation = InputRotation.make(in_features, seed, device)
    identity = torch.eye(in_features, device=device)
    if h_II is None:
        return InputContext(seed, device, rotation, identity, identity)
    if h_II.shape != (in_features, in_features):
        raise ValueError(f"a weight of width {in_features} needs a Hessian of that size, not {tuple(h_II.shape)}")
    h = h_II.detach().to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(h).all()):
        raise NonFiniteValues("the Hessian has NaN or infinite entries: calibrate again, a retry with it cannot help")
    h = (h + h.T) / 2
    mean = float(h.diagonal().mean())
    if not bool(h.any()):
        return InputContext(seed, device, rotation, identity, identity)
    if mean <= 0:
        raise CalibrationError(_NOT_SEMIDEFINITE)
    rotated, root = _root(rotation.rotate_hessian((h / mean).to(torch.float32)))
    level = float(damped_level(root))
    return InputContext(seed, device, rotation, rotated, root, level)


def _root(h_II: Tensor) -> tuple[Tensor, Tensor]:
    """H and lower triangular S with S Sᵀ = H + the least damping (of a short ladder) that factorises.

    Where rounding has made H as indefinite as that, the H returned has the damping in it.

    Raises:
        CalibrationError: none of the ladder does.
    """
    share = _ROOT_DAMPING
    while share < 2 * _MOST_ROOT_DAMPING:
        s_II, info = torch.linalg.cholesky_ex(damped(h_II, share))
        if int(info) == 0:
            # below DAMPING, what rounding adds anyway makes up for it
            sound_II = h_II if share < DAMPING / 2 else damped(h_II, share).to(torch.float32)
            return sound_II, s_II.to(torch.float32)
        share *= 10
    raise CalibrationError(_NOT_SEMIDEFINITE)


@dataclass(frozen=True)
class Start:
    """Q at rank 0, from which the configs of all ranks take their row scales."""

    q: RoundedRows
    #: steps by which the chosen scales exceed the rows' root mean squares
    offset_O: Tensor
    error: float


@dataclass
class MatrixContext:
    """One matrix in the rotated basis, with unit root mean square, and its input."""

    #: the weight as given, float32
    raw_w_OI: Tensor
    raw_h_II: Tensor | None
    input: InputContext
    #: rotated, root mean square 1 (or all zero)
    w_OI: Tensor
    #: root mean square of the weight
    scale: float
    #: Q of rank 0, by codebook, bits and states
    starts: dict[tuple[str, int, int], Start] = field(default_factory=dict)

    def error(self, w_hat_OI: Tensor) -> float:
        """‖(W − Ŵ) S‖² in normalised, rotated units."""
        return float(((self.w_OI - w_hat_OI) @ self.input.s_II).square().sum())

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
    weight: Tensor, hessian: Tensor | None, seed: int, device: torch.device, shared: InputContext | None = None
) -> MatrixContext:
    """Check, rotate and normalise a weight; ``shared`` is the context of the same H and seed, where there is one."""
    w_OI = checked_weight(weight, device)
    if shared is None:
        shared = prepare_input(hessian, w_OI.shape[1], seed, device)
    scale = float(w_OI.to(torch.float64).square().mean().sqrt())
    unit_OI = w_OI / scale if scale > 0 else torch.zeros_like(w_OI)
    return MatrixContext(w_OI, hessian, shared, shared.rotation.rotate(unit_OI), scale)
