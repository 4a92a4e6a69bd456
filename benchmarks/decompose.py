"""Error at equal bits beside the reference's records, and the time it takes.

    python benchmarks/decompose.py REFERENCE_DIR [--codebooks e8,scalar] [--out benchmarks/results/decompose-cpu.md]

REFERENCE_DIR holds ``make_matrices.py`` (makes the W, H pairs from fixed seeds) and ``reference_results.json`` (what
CALDERA on QuIP# reached on them). The bar for each (bits, rank, factor bits) is the lowest error of any record there,
whatever its settings.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from compress_core import NUMERICS_VERSION, CompressionConfig, sweep_matrix


@dataclass(frozen=True)
class Row:
    matrix: str
    codebook: str
    bits: int
    rank: int
    factor_bits: int | None
    reference: float
    reference_bits: float
    ours: float
    our_bits: float
    cpu_seconds: float

    @property
    def ratio(self) -> float:
        return self.ours / self.reference


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best_records(records: list[dict[str, Any]]) -> dict[tuple[str, int, int, int | None], dict[str, Any]]:
    """The lowest error of each (matrix, bits, rank, factor bits); timing-only runs are no bar."""
    best: dict[tuple[str, int, int, int | None], dict[str, Any]] = {}
    for record in records:
        if record["group"] == "stock timing":
            continue
        key = (record["matrix"], record["q_bits"], record["rank"], record["factor_bits"] if record["rank"] else None)
        if key not in best or record["act_err"] < best[key]["act_err"]:
            best[key] = record
    return best


def run(reference: Path, codebooks: list[str]) -> list[Row]:
    makers = load_module(reference / "make_matrices.py")
    records = json.loads((reference / "reference_results.json").read_text())["records"]
    rows = []
    for name in makers.SPECS:
        w, h = makers.make(name)
        for codebook in codebooks:
            sweep_matrix(w[:64], h, [CompressionConfig(b_q=2, codebook=codebook)])  # warm-up
            for (matrix, bits, rank, factor_bits), record in sorted(best_records(records).items(), key=str):
                if matrix != name:
                    continue
                config = CompressionConfig(b_q=bits, rank=rank, factor_bits=factor_bits or 4, codebook=codebook)
                started = time.process_time()
                measured = sweep_matrix(w, h, [config])[0]
                seconds = time.process_time() - started
                rows.append(
                    Row(
                        name, codebook, bits, rank, factor_bits, record["act_err"], record["bpw"],
                        measured.calibration_weighted_error, measured.bits_per_weight, seconds,
                    )
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def sweep_times(codebook: str) -> list[tuple[str, float]]:
    """CPU seconds of nine configs (b_q 2, 3, 4 × rank 0, 8, 16; 4-bit factors) on shapes of a small model."""
    times = []
    grid = [CompressionConfig(b_q=b, rank=r, codebook=codebook) for b in (2, 3, 4) for r in (0, 8, 16)]
    for shape in ((256, 256), (688, 256), (256, 688)):
        g = torch.Generator().manual_seed(sum(shape))
        w = torch.randn(*shape, generator=g)
        x = torch.randn(2 * shape[1], shape[1], generator=g) * torch.exp(torch.randn(shape[1], generator=g))
        started = time.process_time()
        sweep_matrix(w, x.T @ x / x.shape[0], grid)
        times.append((f"{shape[0]} × {shape[1]}", time.process_time() - started))
    return times


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def report(rows: list[Row]) -> str:
    lines = [
        "# Decomposition on the CPU, beside the reference",
        "",
        "calibration_weighted_error on the raw H; reference = lowest record of CALDERA/QuIP# at that config.",
        "Our bits count every stored byte (scales too); the reference's leave scales and signs out.",
        "",
        f"Made by `benchmarks/decompose.py` on {datetime.datetime.now(datetime.UTC).date()}; "
        f"numerics version {NUMERICS_VERSION}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread of a shared {platform.machine()} machine. Default settings throughout.",
        "",
        "| matrix | codebook | b_q | rank | factor bits | reference | bits | ours | bits | ratio | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.matrix} | {r.codebook} | {r.bits} | {r.rank} | {r.factor_bits or '-'} | {r.reference:.5f} | "
            f"{r.reference_bits:.3f} | {r.ours:.5f} | {r.our_bits:.3f} | {r.ratio:.3f} | {r.cpu_seconds:.2f} |"
        )
    lines += ["", "| codebook | configs | geometric mean of ratios | largest |", "|---|---|---|---|"]
    for codebook in dict.fromkeys(r.codebook for r in rows):
        for label, wanted in (("rank 0", None), ("4-bit factors", 4), ("16-bit factors", 16)):
            ratios = [r.ratio for r in rows if r.codebook == codebook and r.factor_bits == wanted]
            if ratios:
                lines.append(
                    f"| {codebook} | {label} ({len(ratios)}) | {geometric_mean(ratios):.3f} | {max(ratios):.3f} |"
                )
    lines += ["", "Nine configs (b_q 2, 3, 4 × rank 0, 8, 16, 4-bit factors) by `sweep_matrix`, CPU seconds:", ""]
    lines += ["| codebook | shape | CPU s |", "|---|---|---|"]
    for codebook in dict.fromkeys(r.codebook for r in rows):
        lines += [f"| {codebook} | {shape} | {seconds:.2f} |" for shape, seconds in sweep_times(codebook)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="folder with make_matrices.py and reference_results.json")
    parser.add_argument("--codebooks", default="e8,scalar")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decompose-cpu.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = report(run(args.reference, args.codebooks.split(",")))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
