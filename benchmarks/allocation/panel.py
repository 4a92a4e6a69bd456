"""One model, codebook and budget: the ways to spend its bytes, scored on the report split.

Shapes: N windows, L layers.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.allocation_lab import Choice, Lab, Losses, Say, choice_hash
from compress_core import CompressionConfig
from compress_core.allocate import (
    Allocation,
    AllocationProblem,
    layer_sensitivities,
    manual_allocation,
    optimal_allocation,
    random_allocations,
    uniform_candidates,
)
from compress_core.config import BASELINE_CODEBOOKS
from compress_core.errors import InfeasibleBudget
from compress_core.evaluate.interval import compare
from compress_core.evaluate.perplexity import evaluate_perplexity
from compress_core.pack.layout import fixed_bytes, stored_bytes
from compress_core.pack.reader import PackedModel
from compress_core.pack.writer import write_packed_model

#: bits of Q on the menu
BITS = {
    "scalar": (2, 3, 4, 5, 6),
    "trellis": (2, 3, 4, 5, 6),
    "e8": (2, 3, 4),
    "rtn": (2, 3, 4, 5, 6, 8),
    "gptq": (2, 3, 4, 5, 6, 8),
}
FACTOR_BITS = (4, 8)
OPTIMAL = "optimal"
BASELINE_NOMINAL = (3.5, 4.5)
#: uniform's perplexity may be at most so many times the original's for a budget to count
LARGEST_RATIO = 2.0


@dataclass(frozen=True)
class Setting:
    """What is tried on one model."""

    ranks: tuple[int, ...]
    middle_rank: int
    #: windows of the measure, select and report splits
    measure: int
    select: int
    report: int
    #: bits a weight that the two budgets stay within, fixed on the select split
    nominal: tuple[float, float]
    #: random allocations
    random: int
    #: the first one with every baseline
    codebooks: tuple[str, ...]

    def budgets(self, codebook: str) -> tuple[float, float]:
        """Plain grids are of little use below 3 bits."""
        return BASELINE_NOMINAL if codebook in BASELINE_CODEBOOKS else self.nominal

    def menu(self, codebook: str) -> list[CompressionConfig]:
        bits = BITS[codebook]
        ranks = () if codebook in BASELINE_CODEBOOKS else self.ranks
        return [_config(codebook, b) for b in bits] + [
            _config(codebook, b, r, f) for b in bits for f in FACTOR_BITS for r in ranks
        ]

    def anchors(self, codebook: str) -> list[CompressionConfig]:
        """A finer one at rank 0, and a coarser one with L·R where the codebook takes it."""
        if codebook in BASELINE_CODEBOOKS:
            return [_config(codebook, 3), _config(codebook, 4)]
        return [_config(codebook, 3), _config(codebook, 2, self.middle_rank)]


def _config(codebook: str, b_q: int, rank: int = 0, factor_bits: int = 4) -> CompressionConfig:
    return CompressionConfig(b_q=b_q, rank=rank, factor_bits=factor_bits, codebook=codebook, states=256)


SETTINGS = {
    "demo": Setting(
        (4, 8, 16, 32),
        16,
        measure=8,
        select=16,
        report=96,
        nominal=(2.5, 3.0),
        random=6,
        codebooks=("scalar", "e8", "rtn", "gptq"),
    ),
    "stories260K": Setting(
        (2, 4, 8, 16),
        8,
        measure=16,
        select=64,
        report=256,
        nominal=(3.6, 4.0),
        random=20,
        codebooks=("scalar", "e8", "trellis", "rtn"),
    ),
}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to spend the budget."""

    name: str
    nbytes: int
    choice: Choice
    report: Losses


@dataclass(frozen=True, eq=False)
class Panel:
    """One model, codebook and budget."""

    lab: Lab
    codebook: str
    budget_bytes: int
    uniform_name: str
    original: Losses
    uniform: Candidate
    others: tuple[Candidate, ...]
    #: bytes on disk of the packed optimum less what was predicted, and the largest difference of a window's loss
    packed: tuple[int, float] | None

    def gain(self, losses: Losses) -> tuple[float, float, float]:
        """1 − PPL / PPL of uniform, with its paired 95 % interval."""
        n = np.full(len(losses.nll_N), losses.n_tokens)
        change = compare(self.uniform.report.nll_N, losses.nll_N, n).relative_change
        return -change.estimate, -change.high, -change.low

    def removed(self, losses: Losses, seed: int = 0) -> tuple[float, float, float]:
        """Share of uniform's excess loss over the original that is gone; interval from a bootstrap of the windows."""
        rng = np.random.default_rng(seed)
        rows = np.stack([self.uniform.report.nll_N - losses.nll_N, self.uniform.report.nll_N - self.original.nll_N])
        weights = rng.multinomial(rows.shape[1], np.full(rows.shape[1], 1 / rows.shape[1]), size=4000)
        sums = weights @ rows.T
        low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
        return float(rows[0].sum() / rows[1].sum()), float(low), float(high)


class Study:
    """One model and codebook."""

    def __init__(self, lab: Lab, setting: Setting, codebook: str, say: Say, *, thorough: bool) -> None:
        self.lab, self.setting, self.codebook, self.say, self.thorough = lab, setting, codebook, say, thorough
        self.menu = setting.menu(codebook)
        self.baselines = {
            name: [CompressionConfig(b_q=b, codebook=name) for b in BITS[name]] for name in BASELINE_CODEBOOKS
        }
        for menu in (self.menu, *(self.baselines.values() if thorough else ())):
            lab.sweep(menu, say)
        self.measure = lab.windows("measure", setting.measure)
        self.select = lab.windows("select", setting.select)
        self.report = lab.windows("report", setting.report)
        self.weights = lab.class_weights(self.measure, setting.anchors(codebook), say)
        self.factors_L = lab.layer_factors(self.measure, setting.anchors(codebook), say)

    def problem(self, menu: Sequence[CompressionConfig], *, alone: bool = False) -> AllocationProblem:
        """Σ a·ε in nats, a by the class of the cell, and for what damage in its layer costs in company; or alone."""
        table = self.lab.predicted(menu, self.weights)
        if not alone:
            table = table * self.factors_L[[spec.key.layer_idx for spec in self.lab.specs], None]
        return self.lab.problem(menu, table=table)

    def uniforms(self) -> dict[CompressionConfig, tuple[int, Losses]]:
        """Bytes of every uniform config within the larger budget, and its losses on the select split."""
        most = max(self.setting.budgets(self.codebook)) * self.lab.n_weights / 8
        found = [c for c in uniform_candidates(self.problem(self.menu)) if c.total_bytes <= most]
        choices = [self.lab.uniform(c.config) for c in found]
        losses = self.lab.losses(self.select, choices, self.say)
        return {c.config: (c.total_bytes, loss) for c, loss in zip(found, losses, strict=True)}

    def panel(self, nominal: float, ladder: dict[CompressionConfig, tuple[int, Losses]]) -> Panel:
        fitting = {c: row for c, row in ladder.items() if row[0] <= nominal * self.lab.n_weights / 8}
        best = min(fitting, key=lambda config: fitting[config][1].nll)
        budget = fitting[best][0]
        problem = self.problem(self.menu)
        choices: dict[str, Choice] = {"best uniform": self.lab.uniform(best)}
        choices[OPTIMAL] = optimal_allocation(problem, budget).configs
        choices["optimal, layers taken alone"] = optimal_allocation(self.problem(self.menu, alone=True), budget).configs
        if any(config.rank for config in self.menu):
            rank_0 = [config for config in self.menu if config.rank == 0]
            choices["best of rank 0"] = optimal_allocation(self.problem(rank_0), budget).configs
        randoms: Sequence[Allocation] = ()
        if self.thorough:
            choices |= self._baselines(problem, budget)
            randoms = random_allocations(problem, budget, count=self.setting.random, seed=0)
        asked = [{}, *choices.values(), *(allocation.configs for allocation in randoms)]
        original, *losses = self.lab.losses(self.report, asked, self.say)
        found = [
            Candidate(name, self.lab.nbytes(choice), choice, loss)
            for (name, choice), loss in zip(choices.items(), losses, strict=False)
        ]
        optimum = next(candidate for candidate in found if candidate.name == OPTIMAL)
        packed = self._packed(optimum) if self.thorough else None
        if randoms:
            found.append(_mean_of(randoms, losses[len(choices) :]))
        return Panel(self.lab, self.codebook, budget, str(best), original, found[0], tuple(found[1:]), packed)

    def _baselines(self, problem: AllocationProblem, budget: int) -> dict[str, Choice]:
        found = {}
        for name, menu in {"round-to-nearest": self.baselines["rtn"], "GPTQ": self.baselines["gptq"]}.items():
            try:
                found[name] = optimal_allocation(self.problem(menu), budget).configs
            except InfeasibleBudget:
                self.say(f"{name} has no allocation of {budget:,} bytes")
        return found | {"manual recipe": self._manual(problem, budget)}

    def _packed(self, candidate: Candidate) -> tuple[int, float]:
        """Write the packed model, count its bytes, and score it as it is on disk; kept, for that takes a while."""
        known = self.lab.folder / f"packed-{choice_hash(candidate.choice)}-{self.report.sha256[:12]}.json"
        if not known.exists():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "packed"
                write_packed_model(self.lab.checkpoint, self.lab.calibration, candidate.choice, path)
                nbytes = stored_bytes(path) or 0
                losses = evaluate_perplexity(PackedModel.open(path), self.report)
            expected = candidate.nbytes + fixed_bytes(self.lab.checkpoint)
            differs = float(np.abs(losses.nll - candidate.report.nll_N).max())
            known.write_text(json.dumps([nbytes - expected, differs]))
        more, differs = json.loads(known.read_text())
        return int(more), float(differs)

    def _manual(self, problem: AllocationProblem, budget: int) -> Choice:
        """The recipe with the pair of configs that the sensitivities like best, not one pair fixed by hand."""
        by_layer = layer_sensitivities(self.weights.all_cells)
        best, least = None, math.inf
        for high, low in itertools.permutations(self.menu, 2):
            try:
                found = manual_allocation(problem, by_layer, high=high, low=low, budget_bytes=budget).allocation
            except InfeasibleBudget:
                continue
            if found.objective < least and not found.is_uniform:
                best, least = found, found.objective
        if best is None:
            raise InfeasibleBudget(f"no pair of configs fits {budget:,} bytes", smallest_bytes=budget)
        return best.configs


def _mean_of(allocations: Sequence[Allocation], losses: Sequence[Losses]) -> Candidate:
    """Their mean loss, window by window."""
    kl_N, nll_N = (np.mean(rows, axis=0) for rows in zip(*((loss.kl_N, loss.nll_N) for loss in losses), strict=True))
    nbytes = max(allocation.total_bytes for allocation in allocations)
    return Candidate(f"random, mean of {len(allocations)}", nbytes, {}, Losses(kl_N, nll_N))
