"""Which objective predicts what a whole allocation costs? All of them side by side, on real small models.

    python -m benchmarks.objectives [--models demo,stories260K] [--shared ../shared] [--cache FOLDER] [--write]

For each model and two budgets: 30 random and 10 near-optimal allocations within 0.5 % of the budget, their joint KL on
the select split, and what each objective predicted from the measure split: rank correlation, log slope and κ with
intervals, and the perplexity of the allocation that is optimal for it. What these tables chose is confirmed at a third
budget with other draws. ``--write`` records benchmarks/results/objectives-cpu.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.allocation.experiment import (
    BITS,
    CODEBOOK,
    COUNT,
    NEAR,
    SETTINGS,
    WITHIN,
    Experiment,
    Objective,
    Setting,
    Trial,
    named,
)
from benchmarks.allocation_lab import LENGTH, ROOT, Lab, machine, open_labs, progress
from compress_core.analyze.calibration import CalibrationCheck, check_calibration
from compress_core.analyze.verdict import Estimate

#: read off the tables below
_WHAT_THEY_SAY = """\
## What the tables say

- Plain, absolute and normalised error rank allocations of equal bytes worst, with log slopes far from 1, and their
  optima lose part or all of the gain. Anything measured end to end is far better; one anchor a matrix is enough where
  the model is only slightly hurt. Fisher scores and HIGGS rank nearly as well, but diagonal Fisher and HIGGS are wrong
  in size by factors of 2 to 5 on the demo model (κ).
- On the demo model KL adds up: the sum of isolated KLs is proportional to the joint KL (log slope near 1), so every
  pair of anchors passes. On stories260K, whose KL here is ten times larger, it does not: the isolated KL of *every
  cell* ranks hardly better than two anchors do. What is missing is not precision but company: damage in an early
  layer costs more in a model that is damaged later as well.
- That can be measured with one evaluation a layer (restore one layer of a uniformly compressed model): the factors
  bring the rank correlation near that of the demo model, and do no harm there. Both anchors averaged in log is what
  a sensitivity job does.
- A whole model's KL grows faster than the sum: the log slope is 1.2 to 1.3 on stories260K. Measuring layers in company
  runs the whole model at both anchors, so the line through these two points is known (*linked*): predictions then
  have slopes and ratios near 1 at every budget of both models, and rank as before. Nothing in it is fitted to these
  allocations or to their text.
- KL per unit of error hardly depends on the bits. With L·R it is 1.4 to 2 times that without for q and k of
  stories260K, and about 0.8 times for k of the demo model: nothing that could be assumed, but an anchor of each
  class, used for its own cells, measures it at no more cost than two averaged ones.
- The optimum is flat: objectives that are measured end to end choose allocations within 1 to 3 % of each other's
  perplexity. The anchors matter more for what is promised than for what is chosen.
- Anchors by class were chosen at the first two budgets of stories260K, and so were the factors of layers; its third
  budget (other draws), the demo model and the report split of benchmarks/gains.py confirm."""

RESULTS = Path(__file__).parent / "results" / "objectives-cpu.md"


def check(objective: Objective, trials: Sequence[Trial]) -> CalibrationCheck:
    """Predicted against realised KL."""
    predicted = np.array([objective.predicted(trial.choice) for trial in trials])
    return check_calibration(predicted, np.array([trial.losses.kl_N for trial in trials]))


# --- what is told


def told(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.2f} ({value.low:.2f} … {value.high:.2f})"


def rank_told(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.3f} ({value.low:.3f} … {value.high:.3f})"


def budget_section(experiment: Experiment, objectives: Sequence[Objective], bits: float, seed: int) -> str:
    """The table of one model at one budget."""
    lab = experiment.lab
    budget = int(bits * lab.n_weights / 8)
    near = next(objective for objective in objectives if objective.name.startswith("anchors by class"))
    trials = experiment.trials(budget, near, seed)
    uniforms = experiment.uniforms(budget)
    best = min(uniforms, key=lambda name: uniforms[name].nll)
    (original,) = lab.losses(experiment.select, [{}])
    optima = experiment.losses([experiment.optimum(objective, budget) for objective in objectives])
    realised = [trial.losses.kl for trial in trials]
    lines = [
        f"### {lab.name} at {bits} bits a weight ({budget:,} bytes)",
        "",
        f"{len(trials)} allocations, realised KL {min(realised):.3f} to {max(realised):.3f} nats a token. "
        f"The original has perplexity {original.ppl:.3f}, the best uniform config ({best}) {uniforms[best].ppl:.3f}.",
        "",
        "| objective | evaluations a matrix | Spearman | log slope | κ | its optimum's PPL | its KL / uniform's |",
        "|---|---|---|---|---|---|---|",
    ]
    for objective, losses in zip(objectives, optima, strict=True):
        found = check(objective, trials)
        kappa = told(found.kappa) if objective.in_nats else ""
        change = losses.ppl / uniforms[best].ppl - 1
        lines.append(
            f"| {objective.name} | {objective.evaluations:.2g} | {rank_told(found.spearman)} | "
            f"{told(found.log_slope)} | {kappa} | {losses.ppl:.3f} ({change:+.1%}) | "
            f"{losses.kl / uniforms[best].kl:.2f} |"
        )
    return "\n".join(lines)


def anchors_section(experiment: Experiment, bits: Sequence[float], seed: int) -> str:
    """Every pair of anchors averaged, and by class, at both budgets."""
    columns = range(len(experiment.menu))
    keys = [(config.b_q, config.rank) for config in experiment.menu]
    pairs = [
        experiment.averaged(f"{named(keys[a])}, {named(keys[b])}", keys[a], keys[b])
        for a, b in itertools.combinations(columns, 2)
    ]
    classes = [
        experiment.by_class(f"{named(a)} / {named(b)}", a, b)
        for a in keys
        for b in keys
        if not a[1] and b[1] and a[0] < 5 and b[0] < 5
    ]
    lines = [
        "| bits | anchors | pairs | Spearman, lowest | median | highest | of | slope, lowest | median | highest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bit in bits:
        budget = int(bit * experiment.lab.n_weights / 8)
        trials = experiment.trials(budget, classes[0], seed)
        for name, group in (("averaged", pairs), ("by class", classes)):
            found = [quick(objective, trials) for objective in group]
            rho, slope = np.array(found).T
            best = group[int(rho.argmax())].name
            lines.append(
                f"| {bit} | {name} | {len(group)} | {rho.min():.3f} | {np.median(rho):.3f} | {rho.max():.3f} | "
                f"{best} | {slope.min():.2f} | {np.median(slope):.2f} | {slope.max():.2f} |"
            )
    return "\n".join(lines)


def quick(objective: Objective, trials: Sequence[Trial]) -> tuple[float, float]:
    """Spearman and log slope, without intervals."""
    predicted = np.array([objective.predicted(trial.choice) for trial in trials])
    realised = np.array([trial.losses.kl for trial in trials])
    slope = np.polyfit(np.log(predicted), np.log(realised), 1)[0]
    return float(spearmanr(predicted, realised)[0]), float(slope)


def ratios_section(experiment: Experiment) -> str:
    """KL per unit of error beside that of 2 bits without L·R: what one a_i a matrix cannot say."""
    ratio_nk = np.log(np.maximum(experiment.isolated_nkN.mean(2), 1e-9) / experiment.error)
    ratio_nk -= ratio_nk[:, [experiment.column(2, 0)]]
    projections = np.array([spec.key.projection for spec in experiment.lab.specs])
    lines = [
        "| projection | " + " | ".join(named((c.b_q, c.rank)) for c in experiment.menu) + " |",
        "|---" * (len(experiment.menu) + 1) + "|",
    ]
    for projection in dict.fromkeys(projections.tolist()):
        values = np.exp(np.median(ratio_nk[projections == projection], axis=0))
        lines.append(f"| {projection} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def model_section(lab: Lab, setting: Setting) -> str:
    """Everything that is told of one model."""
    experiment = Experiment(lab, setting, progress)
    objectives = experiment.objectives()
    return "\n\n".join(
        [
            f"## {lab.name}",
            f"Menu: {CODEBOOK}, {BITS[0]} to {BITS[-1]} bits × ranks {', '.join(map(str, setting.ranks))}, 4-bit "
            f"factors; {len(lab.specs)} matrices. {setting.measure} windows of the measure split, {setting.select} of "
            f"select, {LENGTH} tokens each.",
            *(budget_section(experiment, objectives, bits, seed=0) for bits in setting.budgets),
            budget_section(experiment, objectives, setting.confirm, seed=1),
            f"### {lab.name}: every pair of anchors",
            anchors_section(experiment, setting.budgets, seed=0),
            f"### {lab.name}: isolated KL per unit of error, beside 2b r0 (median over layers)",
            ratios_section(experiment),
        ]
    )


def page(sections: Sequence[str], command: str) -> str:
    return "\n\n".join(
        [
            "# Objectives: what predicts the joint KL of an allocation",
            f"{machine()} `{command}`. {COUNT} seeded allocations a budget within {WITHIN:.1%} of its bytes, {NEAR} of "
            "them near-optimal, the others drawn so that they starve whole groups of matrices. Predicted on the "
            "measure split, realised on select. Slope: least squares of log realised on log predicted; κ: geometric "
            "mean of realised over predicted; intervals: 95 %, bootstrap over allocations and windows together. "
            "Evaluations: runs of the model beyond the sweep, a matrix.",
            _WHAT_THEY_SAY,
            *sections,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,stories260K")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bitbudget-lab")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labs = open_labs(arguments.models.split(","), arguments.shared, arguments.cache)
    sections = [model_section(lab, SETTINGS[lab.name]) for lab in labs]
    text = page(sections, f"python -m benchmarks.objectives --models {arguments.models} --write")
    sys.stdout.write(text + "\n")
    if arguments.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
