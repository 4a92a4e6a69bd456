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
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.allocation.panel import LARGEST_RATIO, SETTINGS, Panel, Setting, Study
from benchmarks.allocation_lab import LENGTH, ROOT, machine, open_labs, progress

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
    parser.add_argument("--codebooks", help="the first one with every baseline; default: those of each model's setting")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bitbudget-lab")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    panels = []
    for lab in open_labs(arguments.models.split(","), arguments.shared, arguments.cache):
        setting = SETTINGS[lab.name]
        codebooks = arguments.codebooks.split(",") if arguments.codebooks else setting.codebooks
        for codebook in codebooks:
            study = Study(lab, setting, codebook, progress, thorough=codebook == codebooks[0])
            ladder = study.uniforms()
            panels += [study.panel(nominal, ladder) for nominal in setting.budgets(codebook)]
    names = dict.fromkeys(panel.lab.name for panel in panels)
    chosen = f" --codebooks {arguments.codebooks}" if arguments.codebooks else ""
    command = f"python -m benchmarks.gains --models {arguments.models}{chosen} --write"
    text = page(panels, {name: SETTINGS[name] for name in names}, command)
    sys.stdout.write(text + "\n")
    if arguments.write:
        RESULTS.write_text(text + "\n")
        RESULTS.with_suffix(".json").write_text(json.dumps([record(panel) for panel in panels], indent=1) + "\n")


if __name__ == "__main__":
    main()
