"""How well does each form of the error's law predict what it has not seen, on real models?

    python -m benchmarks.fit_forms [--models demo,stories260K] [--codebooks scalar,e8] [--shared ../shared]
                                   [--cache FOLDER] [--write]

One fit per codebook and factor bits, over the sweeps of benchmarks/gains.py. Cross-validated R² of log error *within*
matrices: a free scale a matrix explains the rest by itself. ``--write`` records benchmarks/results/fits-cpu.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.allocation_lab import ROOT, Lab, machine, open_labs, progress
from benchmarks.gains import FACTOR_BITS, SETTINGS
from compress_core import CompressionConfig
from compress_core.fit import CrossValidation, ErrorObservation, FormSelection, select_form

RESULTS = Path(__file__).parent / "results" / "fits-cpu.md"
#: below this the plan falls back to interpolation
BAR = 0.7


def observations(lab: Lab, menu: Sequence[CompressionConfig]) -> list[ErrorObservation]:
    """The cells of a menu, as a fit takes them."""
    found = {}
    for spec in lab.specs:
        for config in menu:
            rank = config.clamped(spec.out_features, spec.in_features).rank
            found[spec.key, config.b_q, rank] = lab.cell(spec, config).error
    return [ErrorObservation(matrix, b_q, rank, error) for (matrix, b_q, rank), error in found.items()]


def rows(lab: Lab, codebook: str, factor_bits: int) -> list[str]:
    menu = [c for c in SETTINGS[lab.name].menu(codebook) if not c.rank or c.factor_bits == factor_bits]
    lab.sweep(menu, progress)
    of_menu = observations(lab, menu)
    progress(f"{lab.name} {codebook}: {len(of_menu)} errors, factors in {factor_bits} bits")
    selection: FormSelection = select_form(of_menu)
    head = f"{lab.name} | {codebook} | {factor_bits}"
    lines = []
    for judged in selection.judged:
        if not judged.fitted:
            lines.append(f"| {head} | {judged.form} | | | | | not fitted: {judged.reason} |")
            continue
        fit = selection.fits[judged.form]
        lines.append(
            f"| {head} | {judged.form}{' (chosen)' if judged.chosen else ''} | {_r2(fit.cross_validation)} | {_rmse(fit.cross_validation)} | "
            f"{_r2(fit.layer_validation)} | {_rmse(fit.layer_validation)} | {judged.reason} |"
        )
    return lines


def _r2(cv: CrossValidation | None) -> str:
    return "" if cv is None or cv.r2_log_within is None else f"{cv.r2_log_within:.4f}"


def _rmse(cv: CrossValidation | None) -> str:
    return "" if cv is None else f"{cv.rmse_log:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,stories260K")
    parser.add_argument("--codebooks", default="scalar,e8")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bitbudget-lab")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Forms of the error's law on real sweeps",
        "",
        f"{machine()} `python -m benchmarks.fit_forms --models {arguments.models} --codebooks {arguments.codebooks} "
        f"--write`. R² of log error within matrices and rmse of log error, of what was left out: one config at a time, "
        f"or one layer at a time (whose scale comes from its coarsest config). Bar: R² ≥ {BAR}.",
        "",
        "| model | codebook | factor bits | form | R², config out | rmse | R², layer out | rmse | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for lab in open_labs(arguments.models.split(","), arguments.shared, arguments.cache):
        for codebook in arguments.codebooks.split(","):
            for factor_bits in FACTOR_BITS:
                lines += rows(lab, codebook, factor_bits)
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if arguments.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
