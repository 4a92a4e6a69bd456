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

from benchmarks.allocation.panel import FACTOR_BITS, SETTINGS
from benchmarks.allocation_lab import ROOT, Lab, machine, open_labs, progress
from compress_core import CompressionConfig
from compress_core.checkpoint.read import read_matrix
from compress_core.context import prepare_matrix
from compress_core.decompose import compress_prepared
from compress_core.fit import CrossValidation, ErrorObservation, FormSelection, Spectra, select_form
from compress_core.matrix import MatrixKey
from compress_core.measurement import ResidualSpectrum
from compress_core.precision import exact_float32
from compress_core.residual_spectrum import residual_spectrum
from compress_core.shared_inputs import SharedInputs

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


def spectra(lab: Lab, menu: Sequence[CompressionConfig]) -> dict[tuple[MatrixKey, int], ResidualSpectrum]:
    """What low-rank terms could take back of each rank-0 cell, as a sweep records it."""
    largest = max(config.rank for config in menu)
    inputs = SharedInputs(lab.calibration, torch.device("cpu"))
    found = {}
    for spec in lab.specs:
        progress(f"{lab.name} {spec.key}: residual spectra")
        shared = inputs.of(spec)
        with exact_float32(), torch.no_grad():
            weight = read_matrix(lab.checkpoint, spec).float()
            context = prepare_matrix(weight, shared.h_II, 0, torch.device("cpu"), shared.context(0))
            for config in (config for config in menu if not config.rank):
                compress_prepared(context, config)
                spectrum = residual_spectrum(context, config, largest)
                if spectrum is not None:
                    found[spec.key, config.b_q] = spectrum
    return found


def codebook_rows(lab: Lab, codebook: str) -> list[str]:
    menu = SETTINGS[lab.name].menu(codebook)
    lab.sweep(menu, progress)
    of_rank_0 = spectra(lab, menu)
    lines = []
    for factor_bits in FACTOR_BITS:
        of_bits = [config for config in menu if not config.rank or config.factor_bits == factor_bits]
        lines += rows(lab, codebook, factor_bits, of_bits, of_rank_0)
    return lines


def rows(lab: Lab, codebook: str, factor_bits: int, menu: Sequence[CompressionConfig], of_rank_0: Spectra) -> list[str]:
    of_menu = observations(lab, menu)
    progress(f"{lab.name} {codebook}: {len(of_menu)} errors, factors in {factor_bits} bits")
    selection: FormSelection = select_form(of_menu, spectra=of_rank_0)
    head = f"{lab.name} | {codebook} | {factor_bits}"
    lines = []
    for judged in selection.judged:
        if not judged.fitted:
            lines.append(f"| {head} | {judged.form} | | | | | not fitted: {judged.reason} |")
            continue
        fit = selection.fits[judged.form]
        by_config, by_layer = fit.cross_validation, fit.layer_validation
        lines.append(
            f"| {head} | {judged.form}{' (chosen)' if judged.chosen else ''} | {_r2(by_config)} | {_rmse(by_config)} | "
            f"{_r2(by_layer)} | {_rmse(by_layer)} | {judged.reason} |"
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
        "or one layer at a time (whose scale comes from its coarsest config; its residual spectra stay known). "
        f"Bar: R² ≥ {BAR}.",
        "",
        "| model | codebook | factor bits | form | R², config out | rmse | R², layer out | rmse | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for lab in open_labs(arguments.models.split(","), arguments.shared, arguments.cache):
        for codebook in arguments.codebooks.split(","):
            lines += codebook_rows(lab, codebook)
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if arguments.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
