"""What does the exact allocation gain over the best uniform config, at exactly its bytes?

    python -m benchmarks.gains [--models demo,stories260K] [--codebooks scalar,e8] [--shared ../shared] [--cache FOLDER]
                               [--write]

For each model and codebook one full menu: bits × ranks × factor bits. Sensitivities come from the measure split: two
anchors a matrix, one for the cells without L·R and one for those with it, corrected for what layers cost in company. A
budget is the bytes of the uniform config that is best on the select split among those within a nominal number of bits a
weight. Beside the optimum, at no more bytes: the original, round-to-nearest and GPTQ (each optimal over its bits), the
best of rank 0, the manual recipe (its best pair of configs), and random allocations. Everything is scored on the report
split; the optimum is packed, and its bytes on disk compared with what was predicted. ``--write`` records
benchmarks/results/gains-cpu.md and .json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.allocation_lab import LENGTH, ROOT, Choice, Lab, Losses, Say, machine, open_labs, progress
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

RESULTS = Path(__file__).parent / "results" / "gains-cpu.md"
#: read off the tables below
_WHAT_THEY_SAY = """\
## What the tables say

- stories260K: the optimum is more than 5 % below best uniform's perplexity at both budgets, with intervals far from 0,
  and removes more than 35 % of the excess loss.
- demo: more than 35 % of the excess is removed at both budgets, but 5 % of perplexity cannot be reached with these
  codebooks: the original itself is no more than the ceiling better. Best uniform is that close because the matrices
  are rotated, rounded with feedback and bits begin at 2; below it no budget has room to move (2 bits everywhere is the
  smallest allocation). With plain round-to-nearest or GPTQ as the codebook, where uniform loses more, the same
  objective and solver have more to win: see these panels.
- L·R does not earn its bytes on these two models at these budgets: the best allocation of rank 0 is as good, for their
  matrices are small (64 to 688 wide), where a rank costs 0.1 to 0.4 bits a weight at 4 bits a factor.
- Round-to-nearest and GPTQ, each optimal over its own bits, lose to the optimum everywhere; the manual recipe gets part
  of the gain; random allocations of the same bytes are worse than uniform.
- Layers taken alone or in company: the choice hardly differs here."""
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
    "demo": Setting((4, 8, 16, 32), 16, measure=8, select=16, report=96, nominal=(2.5, 3.0), random=6),
    "stories260K": Setting((2, 4, 8, 16), 8, measure=16, select=64, report=256, nominal=(3.6, 4.0), random=20),
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
        """Write the packed model, count its bytes, and score it as it is on disk."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "packed"
            write_packed_model(self.lab.checkpoint, self.lab.calibration, candidate.choice, path)
            nbytes = stored_bytes(path) or 0
            losses = evaluate_perplexity(PackedModel.open(path), self.report)
        expected = candidate.nbytes + fixed_bytes(self.lab.checkpoint)
        return nbytes - expected, float(np.abs(losses.nll - candidate.report.nll_N).max())

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


# --- what is told


def percent(value: tuple[float, float, float]) -> str:
    return f"{value[0]:+.1%} ({value[1]:+.1%} … {value[2]:+.1%})"


def panel_section(panel: Panel) -> str:
    """The table of one panel."""
    n_weights = panel.lab.n_weights
    ratio = panel.uniform.report.ppl / panel.original.ppl
    lines = [
        f"### {panel.lab.name}, {panel.codebook}: {panel.budget_bytes:,} bytes, "
        f"{8 * panel.budget_bytes / n_weights:.3f} bits a weight",
        "",
        f"Best uniform: {panel.uniform_name}, perplexity {ratio:.3f} × the original's"
        f"{'' if ratio <= LARGEST_RATIO else ': too coarse to count'}. No allocation can gain more than the original: "
        f"{percent(panel.gain(panel.original))}.",
        "",
        "| | bytes of the matrices | PPL | gain over best uniform | excess loss removed | KL |",
        "|---|---|---|---|---|---|",
        f"| original | | {panel.original.ppl:.3f} | {percent(panel.gain(panel.original))} | | |",
        f"| best uniform | {panel.uniform.nbytes:,} | {panel.uniform.report.ppl:.3f} | | | "
        f"{panel.uniform.report.kl:.4f} |",
    ]
    for candidate in panel.others:
        losses = candidate.report
        lines.append(
            f"| {candidate.name} | {candidate.nbytes:,} | {losses.ppl:.3f} | {percent(panel.gain(losses))} | "
            f"{percent(panel.removed(losses))} | {losses.kl:.4f} |"
        )
    if panel.packed is not None:
        lines += [
            "",
            f"Packed and read back, the optimum differs from its predicted bytes by {panel.packed[0]}, and no window's "
            f"loss by more than {panel.packed[1]:.1e} nats.",
        ]
    return "\n".join(lines)


def record(panel: Panel) -> dict[str, Any]:
    """The panel as JSON."""
    rows = {
        candidate.name: {
            "matrix_bytes": candidate.nbytes,
            "ppl": candidate.report.ppl,
            "kl": candidate.report.kl,
            "gain": panel.gain(candidate.report),
            "excess_removed": panel.removed(candidate.report),
        }
        for candidate in panel.others
    }
    return {
        "model": panel.lab.name,
        "codebook": panel.codebook,
        "budget_bytes": panel.budget_bytes,
        "bits_per_weight": 8 * panel.budget_bytes / panel.lab.n_weights,
        "uniform": panel.uniform_name,
        "original_ppl": panel.original.ppl,
        "uniform_ppl": panel.uniform.report.ppl,
        "uniform_kl": panel.uniform.report.kl,
        "ceiling": panel.gain(panel.original),
        "packed_minus_predicted_bytes": None if panel.packed is None else panel.packed[0],
        "rows": rows,
        "optimal": {str(key): str(config) for key, config in panel.others[0].choice.items()},
    }


def summary(panels: Sequence[Panel]) -> str:
    """All panels beside each other."""
    lines = [
        "| model | codebook | bits a weight | best uniform | its PPL / original's | ceiling | gain | excess removed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for panel in panels:
        losses = panel.others[0].report
        lines.append(
            f"| {panel.lab.name} | {panel.codebook} | {8 * panel.budget_bytes / panel.lab.n_weights:.3f} | "
            f"{panel.uniform_name} | {panel.uniform.report.ppl / panel.original.ppl:.3f} | "
            f"{panel.gain(panel.original)[0]:.1%} | {percent(panel.gain(losses))} | {percent(panel.removed(losses))} |"
        )
    return "\n".join(lines)


def page(panels: Sequence[Panel], lab_settings: Mapping[str, Setting], command: str) -> str:
    texts = "; ".join(
        f"{name}: {s.measure} windows of the measure split, {s.select} of select, {s.report} of report"
        for name, s in lab_settings.items()
    )
    return "\n\n".join(
        [
            "# What the exact allocation gains over the best uniform config",
            f"{machine()} `{command}`. {texts}; {LENGTH} tokens each. Gain: 1 − exp(mean paired difference of the "
            "loss), with its paired 95 % interval over windows; ceiling: what the original gains; excess removed: the "
            "share of the uniform model's excess loss over the original, bootstrap over windows. Anchors, menus and "
            "budgets were fixed on the measure and select splits; the report split was scored once.",
            _WHAT_THEY_SAY,
            "## Summary",
            summary(panels),
            "## Panels",
            *(panel_section(panel) for panel in panels),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,stories260K")
    parser.add_argument("--codebooks", default="scalar,e8,rtn", help="the first one with every baseline")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bitbudget-lab")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codebooks = arguments.codebooks.split(",")
    panels = []
    for lab in open_labs(arguments.models.split(","), arguments.shared, arguments.cache):
        setting = SETTINGS[lab.name]
        for codebook in codebooks:
            study = Study(lab, setting, codebook, progress, thorough=codebook == codebooks[0])
            ladder = study.uniforms()
            panels += [study.panel(nominal, ladder) for nominal in setting.budgets(codebook)]
    names = dict.fromkeys(panel.lab.name for panel in panels)
    command = f"python -m benchmarks.gains --models {arguments.models} --codebooks {arguments.codebooks} --write"
    text = page(panels, {name: SETTINGS[name] for name in names}, command)
    sys.stdout.write(text + "\n")
    if arguments.write:
        RESULTS.write_text(text + "\n")
        RESULTS.with_suffix(".json").write_text(json.dumps([record(panel) for panel in panels], indent=1) + "\n")


if __name__ == "__main__":
    main()
