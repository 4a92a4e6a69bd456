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
from compress_core.errors import NonFiniteValues
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
from compress_core.rooted_hessian import EXACT_WIDTH
from compress_core.rounding import RoundedRows, Rounder
from compress_core.row_scales import shifted

#: called after each outer iteration with the fraction done, and with 1 at the end; may raise Interrupted
Progress = Callable[[float], None]

#: row scales that are tried first, in steps of 2^(1/16) from the row's root mean square
_WIDE_STEPS = (-4, -2, 0, 2, 4, 7, 11)
#: passes of descent at the scales that are chosen in the end
_FINAL_PASSES = 4
#: κ in multiples of δ, when rounding and in descent
_KAPPA, _KAPPA_DESCENT = 1.5, 0.3
#: φ
_FLOOR = 0.04
#: how much of the rank-0 error per unit of ‖W‖² is left once the Hessian is softened: the a of step 2
_SOFTENED = 0.7
#: a rank that leaves more than this of the rank-0 error hardly helps
_HARDLY = 0.95
#: an estimate below this share of it means that the rank clearly helps
_CLEARLY = 0.85
#: damping of descent relative to the mean diagonal: for a singular H only
_DESCENT_DAMPING = 1e-6
#: rounds of subspace iteration for W's directions, and for those of W − Q, which are hardly others
_FIRST_ROUNDS, _ROUNDS = 3, 1


@dataclass(frozen=True)
class NarrowSearch:
    """Row scales that are tried with descent, around the one that was best without."""

    #: in steps of 2^(1/16)
    steps: tuple[int, ...]
    #: of descent, at each step
    passes: int


#: rounding to a scalar is so cheap that a finer search costs less than a config's L·R, and saves 2 % of the error
_SCALAR_SEARCH = NarrowSearch((-5, -4, -3, -2, -1, 0, 1, 2, 3), 4)
_SEARCH = NarrowSearch((-4, -2, -1, 0, 2), 2)


def narrow_search(codebook: str, width: int) -> NarrowSearch:
    """How far rows' scales are searched with a codebook; every try costs products that grow with the width's square."""
    return _SCALAR_SEARCH if codebook == "scalar" and width <= EXACT_WIDTH else _SEARCH


@dataclass(frozen=True)
class Decomposed:
    """Q and L·R in normalised, rotated units."""

    q: RoundedRows
    factors: Factors | None


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
        narrow = narrow_search(rounder.codebook.name, w_OI.shape[1])
        q = rounder.search_units(w_OI, feedback, curvature, codes_O, narrow.steps, narrow.passes)
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
    if config.rank == 0:
        return Decomposed(start.q, None)
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
        q, low, residual_OI = self._first()
        for iteration in range(1, self.config.iterations):
            if progress is not None:
                progress(iteration / self.config.iterations)
            q = self.rounder.descend(low.subtracted_from(self.context.w_OI), q, self._curvature(low.directions_Ir), 1)
            residual_OI = self._residual(q)
            low = self._low_rank(residual_OI, low.directions_Ir)
        factors = self._quantized(q, low, residual_OI)
        if self._estimate(residual_OI, factors) < _CLEARLY * self.start.error:
            return Decomposed(q, factors)
        error = self._error(residual_OI, factors)
        if error > _HARDLY * self.start.error:
            # factors too coarse to help such a Q: correct the Q of rank 0 with them instead, if that is better
            residual_OI = self._residual(self.start.q)
            others = self._quantized(self.start.q, self._low_rank(residual_OI, low.directions_Ir), residual_OI)
            if self._error(residual_OI, others) < error:
                return Decomposed(self.start.q, others)
        return Decomposed(q, factors)

    def _estimate(self, residual_OI: Tensor, factors: Factors) -> float:
        """‖(W − Q − L̂ R̂) S‖² to a few per cent, at a tenth of its price.

        Raises:
            NonFiniteValues: the factors overflowed.
        """
        probes_Ip = self.context.input.probes_Ip
        image_Op = residual_OI @ probes_Ip - factors.image(probes_Ip)
        return _finite(image_Op.to(torch.float64).square().sum())

    def _error(self, residual_OI: Tensor, factors: Factors) -> float:
        """‖(W − Q − L̂ R̂) S‖²."""
        energy_O = self.context.input.root.energies(factors.subtracted_from(residual_OI).T)
        return _finite(energy_O.to(torch.float64).sum())

    def _residual(self, q: RoundedRows) -> Tensor:
        """W − Q."""
        return q.rounded.subtracted_from(self.context.w_OI)

    def _first(self) -> tuple[RoundedRows, LowRank, Tensor]:
        """The first Q, its L·R, and W − Q."""
        softening = self._softening()
        source_OI = self._not_carried(softening)
        codes_O = shifted(self.rounder.natural_codes(source_OI), self.start.offset_O)
        q = self.rounder.round(source_OI, self._feedback(softening), codes_O)
        residual_OI = self._residual(q)
        return q, self._low_rank(residual_OI, softening.directions_Ir), residual_OI

    def _softening(self) -> Softening:
        """What L·R of this rank will correct, as far as W alone says."""
        context, rank = self.context, self.config.rank
        known = context.softening
        if known is None or (known.rank, known.code) != (rank, self.code):
            context.softening = known = None  # before the next one is made
            root = context.input.root
            start_Ik = self._start(context.input.directions(rank))
            directions_Ir = leading_of_product(context.w_OI, root, start_Ik, rank, _FIRST_ROUNDS).directions_Ir
            right_rI = root.solve_root(directions_Ir).T
            share_Or = context.w_OI @ right_rI.T
            context.softening = known = Softening(rank, self.code, directions_Ir, right_rI, gram(right_rI), share_Or)
        return known

    def _not_carried(self, softening: Softening) -> Tensor:
        """W − L₀·Vᵀ S⁻¹: without the part that Q need not code."""
        share = _SOFTENED * self.start.error * reciprocal(self.context.energy)
        gram_rr = share * softening.gram_rr
        gram_rr.diagonal().add_(self.noise)
        left_Or = share.to(torch.float32) * softening.share_Or
        return torch.addmm(self.context.w_OI, left_Or, solve(gram_rr, softening.right_rI), alpha=-1)

    def _low_rank(self, a_OI: Tensor, directions_Ir: Tensor) -> LowRank:
        return best_low_rank(a_OI, self.context.input.root, self._start(directions_Ir), self.config.rank, _ROUNDS)

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

    def _quantized(self, q: RoundedRows, low: LowRank, residual_OI: Tensor) -> Factors:
        shared = self.context.input
        return quantize_factors(residual_OI, shared.root, shared.feedback, low, q.scale_O, self.code)


def _finite(energy: Tensor) -> float:
    """The number in a tensor.

    Raises:
        NonFiniteValues: it is none.
    """
    if not math.isfinite(value := float(energy)):
        raise NonFiniteValues("low-rank factors overflowed: the Hessian spans too many orders of magnitude")
    return value
