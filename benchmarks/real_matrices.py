"""Every projection of real models, with its real Hessian, beside round-to-nearest and GPTQ at the same bits.

    python benchmarks/real_matrices.py [--models demo=demo/model ...] [--texts stories260K=FILE ...]
                                       [--codebooks e8,scalar] [--bits 2,3,4] [--out FILE]

A model without a text is calibrated on the standard library's own. All configs have rank 0. GPTQ stands there three
times, each with 1 % damping and a scale a row:

* *plain*: round-to-nearest's own grid (its scale from the row's largest weight), columns in their own order;
* *public*: the lowest of eight ways that public implementations offer, each for a whole matrix (symmetric or
  asymmetric grid a row, steps from the extremes or searched by the 2.4-norm, with and without act-order); an
  asymmetric grid stores b_q bits more a row;
* *searched*: codebook "gptq", where each row takes the better order and the best of sixteen steps by its own
  H-weighted error, so that it also profits from luck, the more the smaller the matrix.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress_core import NUMERICS_VERSION, CompressionConfig, sweep_matrix
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import open_checkpoint
from compress_core.checkpoint.read import DenseWeights
from compress_core.codebooks.rtn import rtn_scales
from compress_core.error_metrics import calibration_weighted_error
from compress_core.gptq import nearest_level, round_in_order, unit_feedback
from compress_core.matrix import MatrixKey
from compress_core.text.source import TextSource, split_text
from compress_core.text.tokens import sampled_windows


@dataclass(frozen=True)
class Case:
    """One matrix at some bits: errors by codebook ("plain" and "public" GPTQ among them), CPU seconds, bytes."""

    model: str
    key: MatrixKey
    shape: tuple[int, int]
    bits: int
    error: dict[str, float]
    seconds: dict[str, float]
    nbytes: dict[str, int]

    def ratio(self, codebook: str, baseline: str) -> float:
        return self.error[codebook] / self.error[baseline]


@dataclass(frozen=True)
class RealMatrix:
    """A weight and the Hessian of its input."""

    key: MatrixKey
    w_OI: Tensor
    h_II: Tensor


def real_matrices(model: Path, text: Path | None, *, samples: int = 64, length: int = 256) -> Iterator[RealMatrix]:
    """All projections of a checkpoint, calibrated on ``text`` (None: the standard library)."""
    checkpoint = open_checkpoint(model)
    weights = DenseWeights(checkpoint)
    source = TextSource() if text is None else TextSource(kind="file", path=text)
    tokens = sampled_windows(model, split_text(source, "calibrate"), samples=samples, length=length, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration"
        calibration: Calibration = calibrate_model(checkpoint, tokens, path, source=str(source.to_dict()), seed=0)
        for spec in checkpoint.matrices():
            yield RealMatrix(spec.key, weights.tensor(spec.tensor_name).float(), calibration.hessian(spec.key))


# --- GPTQ with round-to-nearest's grid, and as public implementations have it


def plain_gptq_error(w_OI: Tensor, h_II: Tensor, bits: int) -> float:
    """GPTQ's feedback on the grid of round-to-nearest, nothing searched."""
    step_O = rtn_scales(w_OI, bits)
    unit_II = unit_feedback(h_II.double() / h_II.diagonal().double().mean())
    value_OI = round_in_order(w_OI, unit_II, nearest_level(step_O, bits))
    return calibration_weighted_error(w_OI, value_OI, h_II)


def public_gptq_error(w_OI: Tensor, h_II: Tensor, bits: int) -> float:
    """The lowest error of the eight ways."""
    h64 = h_II.double() / h_II.diagonal().double().mean()
    natural_I = torch.arange(w_OI.shape[1])
    errors = []
    for order_I in (natural_I, h64.diagonal().argsort(descending=True, stable=True)):
        unit_II = unit_feedback(h64[order_I][:, order_I])
        for symmetric, searched in itertools.product((True, False), (True, False)):
            grid = _Grid.make(w_OI, bits, symmetric=symmetric, searched=searched)
            value_OI = torch.empty_like(w_OI)
            value_OI[:, order_I] = round_in_order(w_OI[:, order_I], unit_II, grid.nearest)
            errors.append(calibration_weighted_error(w_OI, value_OI, h_II))
    return min(errors)


@dataclass(frozen=True)
class _Grid:
    """Levels (q − zero)·step, q = 0 … 2^bits − 1, a row."""

    step_O: Tensor
    zero_O: Tensor
    top: int

    @classmethod
    def make(cls, w_OI: Tensor, bits: int, *, symmetric: bool, searched: bool) -> _Grid:
        low_O, high_O = w_OI.amin(1).clamp(max=0), w_OI.amax(1).clamp(min=0)
        if symmetric:
            high_O = torch.maximum(high_O, -low_O)
            low_O = -high_O
        best: _Grid | None = None
        least_O = torch.full_like(low_O, torch.inf)
        for percent in range(100, 20, -1) if searched else (100,):
            grid = cls._between(low_O * percent / 100, high_O * percent / 100, 2**bits - 1, symmetric)
            value_OI = grid._round(w_OI, grid.step_O[:, None], grid.zero_O[:, None])
            error_O = (value_OI - w_OI).abs().pow(2.4).sum(1)
            better_O = error_O < least_O
            least_O = torch.where(better_O, error_O, least_O)
            best = grid if best is None else best._mixed(grid, better_O)
        assert best is not None
        return best

    @classmethod
    def _between(cls, low_O: Tensor, high_O: Tensor, top: int, symmetric: bool) -> _Grid:
        step_O = ((high_O - low_O) / top).clamp(min=1e-9).half().float()
        zero_O = torch.full_like(step_O, (top + 1) / 2) if symmetric else (-low_O / step_O).round()
        return cls(step_O, zero_O, top)

    def _mixed(self, other: _Grid, better_O: Tensor) -> _Grid:
        step_O = torch.where(better_O, other.step_O, self.step_O)
        return _Grid(step_O, torch.where(better_O, other.zero_O, self.zero_O), self.top)

    def _round(self, w: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        return ((w / step).round().add(zero).clamp(0, self.top) - zero) * step

    def nearest(self, target_O: Tensor) -> Tensor:
        return self._round(target_O, self.step_O, self.zero_O)


# --- measure and report


def measure(model: str, matrix: RealMatrix, bits: int, codebooks: list[str]) -> Case:
    """Errors of all codebooks on one matrix, rank 0."""
    error, seconds, nbytes = {}, {}, {}
    for codebook in ("rtn", "gptq", *codebooks):
        started = time.process_time()
        found = sweep_matrix(matrix.w_OI, matrix.h_II, [CompressionConfig(b_q=bits, codebook=codebook)])[0]
        seconds[codebook] = time.process_time() - started
        error[codebook], nbytes[codebook] = found.calibration_weighted_error, found.nbytes
    error["plain"] = plain_gptq_error(matrix.w_OI, matrix.h_II, bits)
    error["public"] = public_gptq_error(matrix.w_OI, matrix.h_II, bits)
    out_features, in_features = matrix.w_OI.shape
    return Case(model, matrix.key, (out_features, in_features), bits, error, seconds, nbytes)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


BASELINES = {"rtn": "rtn", "plain": "plain GPTQ", "public": "public GPTQ", "gptq": "searched GPTQ"}


def summary(cases: list[Case], codebooks: list[str]) -> list[str]:
    """One row for each (model, bits, codebook), and one over all of them for each codebook.

    Against each baseline: geometric mean of the ratios, the largest, and how many are above 1.
    """
    lines = [
        f"| model | b_q | codebook | matrices | {' | '.join(f'over {name}' for name in BASELINES.values())} "
        "| most bytes over GPTQ's | CPU s |",
        "|---" * (6 + len(BASELINES)) + "|",
    ]

    def row(label: str, bits: str, codebook: str, kept: list[Case]) -> str:
        cells = []
        for baseline in BASELINES:
            ratios = [c.ratio(codebook, baseline) for c in kept]
            above = sum(ratio > 1 for ratio in ratios)
            cells.append(f"{geometric_mean(ratios):.3f}, {max(ratios):.3f}, {above}")
        most = max(c.nbytes[codebook] / c.nbytes["gptq"] for c in kept)
        seconds = sum(c.seconds[codebook] for c in kept)
        return f"| {label} | {bits} | {codebook} | {len(kept)} | {' | '.join(cells)} | {most:.3f} | {seconds:.1f} |"

    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.model, case.bits), []).append(case)
    for (model, bits), kept in sorted(groups.items()):
        lines += [row(model, str(bits), codebook, kept) for codebook in codebooks]
    return lines + [row("all", "all", codebook, cases) for codebook in codebooks]


def table(cases: list[Case], codebooks: list[str]) -> list[str]:
    """One row a matrix and bits."""
    names = [*BASELINES.values(), *codebooks, *(f"{c} / searched" for c in codebooks)]
    lines = [f"| model | matrix | shape | b_q | {' | '.join(names)} |", "|---" * (4 + len(names)) + "|"]
    for c in cases:
        errors = [f"{c.error[name]:.3g}" for name in (*BASELINES, *codebooks)]
        ratios = [f"{c.ratio(name, 'gptq'):.3f}" for name in codebooks]
        shape = f"{c.shape[0]} × {c.shape[1]}"
        lines.append(f"| {c.model} | {c.key} | {shape} | {c.bits} | {' | '.join(errors + ratios)} |")
    return lines


def report(cases: list[Case], codebooks: list[str]) -> str:
    """The recorded page."""
    public = [c.ratio("gptq", "public") for c in cases]
    lines = [
        "# Real matrices with their real Hessians, rank 0",
        "",
        "calibration_weighted_error on the raw H, over that of a baseline at the same b_q: geometric mean over the "
        "matrices, the largest, and how many are above 1.",
        "The script says what plain, public and searched GPTQ are. Searched over public GPTQ: geometric mean "
        f"{geometric_mean(public):.3f}, largest {max(public):.3f}.",
        "",
        f"Made by `benchmarks/real_matrices.py` on {datetime.datetime.now(datetime.UTC).date()}; "
        f"numerics version {NUMERICS_VERSION}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread of a shared {platform.machine()} machine. Default settings throughout.",
        "",
        *summary(cases, codebooks),
        "",
        "## Each matrix",
        "",
        *table(cases, codebooks),
    ]
    return "\n".join(lines) + "\n"


def _named_paths(values: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (value.partition("=") for value in values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo=demo/model"], help="NAME=FOLDER")
    parser.add_argument("--texts", nargs="*", default=[], help="NAME=FILE, the calibration text of that model")
    parser.add_argument("--codebooks", default="e8,scalar")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real-matrices-cpu.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    codebooks, texts = args.codebooks.split(","), _named_paths(args.texts)
    cases = []
    for model, folder in _named_paths(args.models).items():
        for matrix in real_matrices(folder, texts.get(model)):
            for bits in map(int, args.bits.split(",")):
                cases.append(measure(model, matrix, bits, codebooks))
                print(cases[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report(cases, codebooks))
    print("\n".join(summary(cases, codebooks)))


if __name__ == "__main__":
    main()
