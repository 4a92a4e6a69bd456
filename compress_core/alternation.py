"""The alternation between Q and L·R: CALDERA's, with a Hessian softened where L·R will correct.

CALDERA (arXiv 2405.18886, alg. 1) alternates between Q = LDLQ(W − L R) and L R = LPLR(W − Q), as if L·R were exact.
Here the noise δ that quantising the factors adds, relative to the energy that L·R carries, decides every step.

1. Q of rank 0 is found once for each codebook: row scales, rounding, descent. All ranks take their scales from it.
2. For a rank, V are the leading whitened directions of W (of W S). Q need not code what L·R carries anyway: of W's part
   in these directions, L₀·Vᵀ S⁻¹, as much is taken out as pays. With a = the error that rounding leaves per unit of
   ‖W‖², L₀ minimises a·‖W − L₀ Vᵀ S⁻¹‖² + δ·‖L₀‖²: with exact factors all, with coarse ones a shrunken part.
3. Q is rounded against the Hessian that *remains* once L·R has corrected its directions,

       H' = S (I − (1 − κ) V Vᵀ) Sᵀ + φ·det(H)^(1/n)·I,      H = S Sᵀ,   κ ≈ δ,

   where the floor φ keeps Q within the codebook's range in directions that weigh nothing. det(H)^(1/n) is what rounding
   with feedback leaves per weight (QuIP, arXiv 2307.13304, lemma 2), so the floor is a share of the error.
4. L·R is the best answer to Q (Eckart-Young), Q descends given L·R, and so on: no step raises ‖(W − Q − L R) S‖² where
   κ is 0. Only the last L·R is quantised.

Shapes: O = out_features, I = in_features, r = rank. w_OI, h_II.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_core.config import CompressionConfig
from compress_core.context import MatrixContext, Softening, Start
from compress_core.descent import Curvature, make_curvature
from compress_core.ldlq import Feedback, reciprocal
from compress_core.lowrank import (
    FactorCode,
    Factors,
    LowRank,
    best_low_rank,
    factor_noise,
    gram,
    leading_of_product,
    quantize_factors,
    solve,
)
from compress_core.rounding import RoundedRows, Rounder
from compress_core.row_scales import shifted

#: called after each outer iteration with the fraction done, and with 1 at the end; may raise Interrupted
Progress = Callable[[float], None]

#: row scales that are tried first, in steps of 2^(1/16) from the row's root mean square
_WIDE_STEPS = (-4, -2, 0, 2, 4, 7, 11)
#: … and then, with descent, from the scale that was best
_NARROW_STEPS = (-4, -2, -1, 0, 2)
#: passes of descent at each of the narrow steps, and at the chosen ones
_NARROW_PASSES, _FINAL_PASSES = 2, 4
#: κ in multiples of δ, when rounding and in descent
_KAPPA, _KAPPA_DESCENT = 1.5, 0.3
#: φ
_FLOOR = 0.04
#: how much of the rank-0 error per unit of ‖W‖² is left once the Hessian is softened: the a of step 2
_SOFTENED = 0.7
#: a rank that leaves more than this of the rank-0 error hardly helps
_HARDLY = 0.95
#: damping of descent relative to the mean diagonal: for a singular H only
_DESCENT_DAMPING = 1e-6


@dataclass(frozen=True)
class Decomposed:
    """Q and L·R in normalised, rotated units; the error is ‖(W − Ŵ) S‖²."""

    q: RoundedRows
    factors: Factors | None
    error: float


def start_of(context: MatrixContext, config: CompressionConfig, rounder: Rounder) -> Start:
    """Q at rank 0 and how far its row scales are from the natural ones; once per codebook and bits."""
    key = (config.codebook, config.b_q, config.states)
    if key not in context.starts:
        w_OI = context.w_OI
        root = context.input.root
        feedback = context.input.feedback(rounder.codebook.block)
        curvature = make_curvature(root, rounder.codebook.block)
        natural_O = rounder.natural_codes(w_OI)
        codes_O = rounder.search_rows(w_OI, feedback, root, natural_O, _WIDE_STEPS)
        q = rounder.search_units(w_OI, feedback, curvature, codes_O, _NARROW_STEPS, _NARROW_PASSES)
        del feedback  # a large one is a square that nobody else keeps
        q = rounder.descend(w_OI, q, curvature, _FINAL_PASSES)
        error = context.error(q.rounded.value_OI)
        context.starts[key] = Start(q, natural_O - q.row_codes_O, error)
    return context.starts[key]


def decompose(
    context: MatrixContext, config: CompressionConfig, rounder: Rounder, progress: Progress | None = None
) -> Decomposed:
    """Q and L·R of a prepared matrix."""
    start = start_of(context, config, rounder)
    at_rank_0 = Decomposed(start.q, None, start.error)
    if config.rank == 0:
        return at_rank_0
    return _Alternation(context, config, rounder, start).run(progress)


@dataclass(frozen=True)
class _Alternation:
    """One config of rank 1 or more."""

    context: MatrixContext
    config: CompressionConfig
    rounder: Rounder
    start: Start

    @property
    def code(self) -> FactorCode:
        config = self.config
        return FactorCode(config.factor_bits_l, config.factor_bits_r, config.codebook, config.states)

    @property
    def noise(self) -> float:
        """δ."""
        return factor_noise(self.code, self.context.shape[0], self.config.rank)

    def run(self, progress: Progress | None) -> Decomposed:
        w_OI = self.context.w_OI
        q, low = self._first()
        for iteration in range(1, self.config.iterations):
            if progress is not None:
                progress(iteration / self.config.iterations)
            q = self.rounder.descend(w_OI - low.product_OI, q, self._curvature(low.directions_Ir), 1)
            low = self._low_rank(w_OI - q.rounded.value_OI, low.directions_Ir)
        best = self._quantized(q, low)
        if best.error > _HARDLY * self.start.error:
            # factors too coarse to help such a Q: correct the Q of rank 0 with them instead, if that is better
            low = self._low_rank(w_OI - self.start.q.rounded.value_OI, low.directions_Ir)
            best = min(best, self._quantized(self.start.q, low), key=lambda d: d.error)
        return best

    def _first(self) -> tuple[RoundedRows, LowRank]:
        """The first Q and its L·R."""
        w_OI = self.context.w_OI
        softening = self._softening()
        source_OI = w_OI - self._carried(softening)
        codes_O = shifted(self.rounder.natural_codes(source_OI), self.start.offset_O)
        q = self.rounder.round(source_OI, self._feedback(softening), codes_O)
        return q, self._low_rank(w_OI - q.rounded.value_OI, softening.directions_Ir)

    def _softening(self) -> Softening:
        """What L·R of this rank will correct, as far as W alone says."""
        context, rank = self.context, self.config.rank
        known = context.softening
        if known is None or (known.rank, known.code) != (rank, self.code):
            context.softening = known = None  # before the next one is made
            root = context.input.root
            start_Ik = self._start(context.input.directions(rank))
            directions_Ir = leading_of_product(context.w_OI, root, start_Ik, rank, rounds=3).directions_Ir
            right_rI = root.solve_root(directions_Ir).T
            share_Or = context.w_OI @ right_rI.T
            context.softening = known = Softening(rank, self.code, directions_Ir, right_rI, gram(right_rI), share_Or)
        return known

    def _carried(self, softening: Softening) -> Tensor:
        """L₀·Vᵀ S⁻¹, the part of W that Q need not code."""
        share = _SOFTENED * self.start.error * reciprocal(self.context.energy)
        gram_rr = share * softening.gram_rr
        gram_rr.diagonal().add_(self.noise)
        return (share.to(torch.float32) * softening.share_Or) @ solve(gram_rr, softening.right_rI)

    def _low_rank(self, a_OI: Tensor, directions_Ir: Tensor) -> LowRank:
        return best_low_rank(a_OI, self.context.input.root, self._start(directions_Ir), self.config.rank)

    def _start(self, directions_Ir: Tensor) -> Tensor:
        """Of a subspace iteration: these directions and a few random ones."""
        extra_Ik = self.context.input.start(0)[:, : self.context.shape[1] - self.config.rank]
        return torch.cat([directions_Ir, extra_Ik], dim=1)

    def _feedback(self, softening: Softening) -> Feedback:
        shared, block = self.context.input, self.rounder.codebook.block
        if block in softening.feedback:
            return softening.feedback[block]
        made = shared.softened_feedback(
            block,
            shared.root.root_times(softening.directions_Ir),
            kappa=_KAPPA * self.noise,
            damping=_FLOOR * shared.level,
        )
        if shared.keeps_factors:
            softening.feedback[block] = made
        return made

    def _curvature(self, directions_Ir: Tensor) -> Curvature:
        root = self.context.input.root
        corrected_Ir = root.root_times(directions_Ir) * math.sqrt(1 - _KAPPA_DESCENT * self.noise)
        return make_curvature(root, self.rounder.codebook.block, corrected_Ir, _DESCENT_DAMPING)

    def _quantized(self, q: RoundedRows, low: LowRank) -> Decomposed:
        shared = self.context.input
        residual_OI = self.context.w_OI - q.rounded.value_OI
        factors, error = quantize_factors(residual_OI, shared.root, shared.feedback, low, q.scale_O, self.code)
        return Decomposed(q, factors, error)
