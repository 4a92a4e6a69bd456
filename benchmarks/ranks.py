"""Benchmark of a sweep: what further ranks of a matrix cost once others are measured.

    python -m benchmarks.ranks [--codebooks scalar,e8] [--repeats 3] [--write]

Sweeps of one 512 × 512 matrix over b_q 2, 3 and 4 with 4-bit factors: at rank 0 (what all ranks share: the rotation,
the factorisations, Q of rank 0), with rank 32 (3 configs), and with ranks 8, 16, 32, 64 and 128 (15 configs). They take
turns, and the least CPU time of each counts. Beside them what a config cannot do without: one rounding with feedback,
one pass of descent, and the error of what it decodes to. ``--write`` records the table in
benchmarks/results/ranks-cpu.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numba
import torch
from torch import Tensor

from compress_core import NUMERICS_VERSION, CompressionConfig, sweep_matrix
from compress_core.context import prepare_matrix
from compress_core.descent import make_curvature
from compress_core.error_metrics import energies
from compress_core.precision import exact_float32
from compress_core.rounding import Rounder

RESULTS = Path(__file__).parent / "results" / "ranks-cpu.md"
SIZE = 512
BITS = (2, 3, 4)
ONE_RANK, RANKS = (32,), (8, 16, 32, 64, 128)
#: what 15 configs may cost in multiples of 3
PROMISE = 1.7

CODEBOOKS = {
    "trellis-256": CompressionConfig(b_q=2, states=256),
    "trellis-1024": CompressionConfig(b_q=2),
    "e8": CompressionConfig(b_q=2, codebook="e8"),
    "scalar": CompressionConfig(b_q=2, codebook="scalar"),
}


@dataclass(frozen=True)
class Row:
    """CPU seconds of a codebook."""

    codebook: str
    shared: float
    three: float
    fifteen: float
    #: of one config: rounding, descent and measuring alone
    least: float

    @property
    def further(self) -> float:
        """A config more, on average."""
        return (self.fifteen - self.three) / 12

    @property
    def ratio(self) -> float:
        return self.fifteen / self.three


def make_matrix() -> tuple[Tensor, Tensor]:
    """W, and H of inputs that are correlated and of unequal size."""
    g = torch.Generator().manual_seed(0)
    mixing_II = torch.eye(SIZE) + 0.1 * torch.randn(SIZE, SIZE, generator=g) / SIZE**0.5
    x_TI = torch.randn(4 * SIZE, SIZE, generator=g) * torch.linspace(0.1, 3, SIZE) @ mixing_II
    return torch.randn(SIZE, SIZE, generator=g) / SIZE**0.5, x_TI.T @ x_TI / len(x_TI)


def grid(base: CompressionConfig, ranks: Sequence[int]) -> list[CompressionConfig]:
    return [replace(base, b_q=bits, rank=rank) for bits in BITS for rank in ranks]


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.no_grad()
def least_work(w: Tensor, h: Tensor, config: CompressionConfig) -> Callable[[], object]:
    """One rounding, one pass of descent, and one error."""
    context = prepare_matrix(w, h, config.seed, w.device)
    rounder = Rounder.make(context.w_OI, config)
    feedback = context.input.feedback(rounder.codebook.block)
    curvature = make_curvature(context.input.root, rounder.codebook.block)
    codes = rounder.natural_codes(context.w_OI)

    def work() -> None:
        with torch.no_grad(), exact_float32():
            q = rounder.round(context.w_OI, feedback, codes)
            q = rounder.descend(context.w_OI, q, curvature, 1)
            energies(w, q.rounded.value_OI, h)

    return work


def measure(name: str, w: Tensor, h: Tensor, repeats: int) -> Row:
    base = CODEBOOKS[name]
    works = {
        "shared": lambda: sweep_matrix(w, h, grid(base, (0,))),
        "three": lambda: sweep_matrix(w, h, grid(base, ONE_RANK)),
        "fifteen": lambda: sweep_matrix(w, h, grid(base, RANKS)),
        "least": least_work(w, h, replace(base, b_q=3)),
    }
    works["three"]()  # compiles
    turns = [{label: cpu_seconds(work) for label, work in works.items()} for _ in range(repeats)]
    return Row(name, **{label: min(turn[label] for turn in turns) for label in works})


def report(rows: Sequence[Row], repeats: int) -> str:
    lines = [
        "# What further ranks cost",
        "",
        f"{date.today():%Y-%m-%d}; numerics version {NUMERICS_VERSION}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, numba {numba.__version__}; {os.cpu_count()} cores ({platform.machine()}), shared with "
        f"other work (load {os.getloadavg()[0]:.0f}), one thread; least of {repeats} turns. "
        "`python -m benchmarks.ranks --write`.",
        "",
        f"CPU seconds of sweeps of one {SIZE} × {SIZE} matrix over b_q {', '.join(map(str, BITS))}, 4-bit factors: at "
        f"rank 0 (what all ranks share), with rank {ONE_RANK[0]}, with ranks {', '.join(map(str, RANKS))}. Least work: "
        "one rounding, one pass of descent and one error at 3 bits, which no config can do without.",
        "",
        "| codebook | shared | 3 configs | 15 configs | 15 over 3 | one config more | least work |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.codebook} | {row.shared:.2f} | {row.three:.2f} | {row.fifteen:.2f} | {row.ratio:.2f} "
            f"| {row.further:.3f} | {row.least:.3f} |"
        )
    above = [row for row in rows if row.ratio > PROMISE]
    for row in above:
        lines += [
            "",
            f"{row.codebook} is above {PROMISE}: its rounding is so cheap that what all configs share is only "
            f"{row.shared:.2f} s, and {PROMISE} would leave a further config "
            f"{(PROMISE - 1) * row.three / 12:.3f} s. Rounding, descent and the error take {row.least:.3f} s of that; "
            "the rest has two fits of L·R, both factors' rounding, packing and decoding to do.",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codebooks", default=",".join(CODEBOOKS), help=f"of {', '.join(CODEBOOKS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"record the table in {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    w, h = make_matrix()
    text = report([measure(name, w, h, args.repeats) for name in args.codebooks.split(",")], args.repeats)
    print(text)
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
