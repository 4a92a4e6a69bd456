"""How much of what rounding leaves a low-rank term could take back, for every rank at once.

After Q of rank 0 the residual is D = W − Q. By Eckart and Young its best rank-r answer under H takes
Σ_{j ≤ r} σ_j² of ‖D H^½‖² = Σ_j σ_j², σ the singular values of D·S, S Sᵀ = H. The shares ρ(r) are what the
multiplicative error model E(b, r) = s·2^(−βb)·(1 − ρ(r)) needs: one decomposition in place of a cell a rank.
It is a model: with a rank, Q is rounded against a softened Hessian (see ``alternation``) and leaves another D.

Shapes: O = out_features, I = in_features, k = rank and a few more. d_OI.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_core.config import UNROTATED_CODEBOOKS, CompressionConfig
from compress_core.context import MatrixContext
from compress_core.lowrank import leading_of_product, random_start
from compress_core.measurement import ResidualSpectrum
from compress_core.rooted_hessian import RootedHessian

#: up to so many singular values all are found, exactly; above, the leading ones by subspace iteration
_EXACT = 512
#: of subspace iteration: the spectrum is nearly flat, and a leading value is found to about 1 % after so many
_ROUNDS = 4


def has_spectrum(config: CompressionConfig) -> bool:
    """Whether a config leaves a residual that the configs of higher ranks start from."""
    return config.rank == 0 and config.codebook not in UNROTATED_CODEBOOKS


def residual_spectrum(context: MatrixContext, config: CompressionConfig, largest: int) -> ResidualSpectrum | None:
    """The spectrum after Q of a config of rank 0 that ``compress_prepared`` has just made in this context.

    Args:
        largest: rank; cut to what the matrix can have.

    Returns:
        None where no rank is asked for, or nothing is left of the matrix (W = 0).
    """
    largest = min(largest, *context.shape)
    if largest < 1 or not has_spectrum(config):
        return None
    start = context.starts[(config.codebook, config.b_q, config.states)]
    residual_OI = start.q.rounded.subtracted_from(context.w_OI)
    energies = _leading_energies(residual_OI, context.input.root, largest, config.seed)
    total = float(context.input.root.energies(residual_OI.T).to(torch.float64).sum())
    if total <= 0:
        return None
    ranks = tuple(_ranks(largest))
    sums = energies.cumsum(0) / total
    return ResidualSpectrum(ranks, tuple(min(1.0, float(sums[rank - 1])) for rank in ranks))


def _leading_energies(residual_OI: Tensor, root: RootedHessian, largest: int, seed: int) -> Tensor:
    """σ_1² ≥ σ_2² ≥ … of D·S, ``largest`` of them, float64."""
    if min(residual_OI.shape) <= _EXACT:
        product_OI = root.times_root(residual_OI).to(torch.float64)
        gram = product_OI @ product_OI.T if product_OI.shape[0] <= product_OI.shape[1] else product_OI.T @ product_OI
        return torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0)[:largest]
    start_Ik = random_start(root.width, largest, seed + 2, residual_OI.device)
    found = leading_of_product(residual_OI, root, start_Ik, largest, _ROUNDS)
    return found.image_Or.to(torch.float64).square().sum(0)


def _ranks(largest: int) -> list[int]:
    ranks = [1 << power for power in range(largest.bit_length()) if 1 << power <= largest]
    return ranks if ranks[-1] == largest else [*ranks, largest]
