"""Benchmark of the codebooks: error on a unit Gaussian beside Shannon's bound, and time per million weights.

    python -m benchmarks.codebooks [--write]

``--write`` records the table in benchmarks/results/codebooks-cpu.md. Weights are one 512 × 512 matrix, rounded two (e8:
eight) columns at a time in the order of rounding, so that calls are as small as they are in use.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numba
import torch

from compress_core.codebooks import Codebook, get_codebook
from compress_core.config import CODEBOOK_BITS

RESULTS = Path(__file__).parent / "results" / "codebooks-cpu.md"
SIZE = 512
#: matrices whose errors are averaged; the time is the best of them
REPEATS = 4
STATES = (256, 512, 1024, 2048, 4096, 16384, 65536)
#: beyond this many states one matrix is enough
_MANY_STATES = 8192


@dataclass(frozen=True)
class Row:
    name: str
    bits: int
    mse: float
    #: CPU seconds per million weights
    seconds: float

    @property
    def bound(self) -> float:
        """Shannon's distortion at this rate."""
        return 4.0**-self.bits


def columns_together(book: Codebook) -> int:
    return book.block if book.block > 1 else 2


def measure(name: str, book: Codebook, repeats: int) -> Row:
    errors, seconds = [], []
    width = columns_together(book)
    book.nearest(torch.zeros(1, SIZE, width))  # compiles
    for seed in range(repeats):
        x = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        blocks = [part.contiguous().unsqueeze(0) for part in x.split(width, dim=1)]
        started = time.process_time()
        values = [book.nearest(block).sum(0) for block in blocks]
        seconds.append(time.process_time() - started)
        errors.append((torch.cat(values, dim=2)[0] - x).square().mean().item())
    return Row(name, book.bits, sum(errors) / repeats, 1e6 / SIZE**2 * min(seconds))


def rows() -> list[Row]:
    cpu = torch.device("cpu")
    found = []
    for bits in CODEBOOK_BITS["trellis"]:
        for name in ("scalar", "e8"):
            if bits in CODEBOOK_BITS[name]:
                found.append(measure(name, get_codebook(name, bits, cpu), REPEATS))
        for states in STATES:
            book = get_codebook("trellis", bits, cpu, states)
            repeats = 1 if states > _MANY_STATES else REPEATS
            found.append(measure(f"trellis, 2^{states.bit_length() - 1} states", book, repeats))
    return found


def report(found: list[Row]) -> str:
    lines = [
        "# Codebooks on a unit Gaussian",
        "",
        f"{date.today():%Y-%m-%d}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numba {numba.__version__}; {os.cpu_count()} cores ({platform.machine()}), shared with other work (load "
        f"{os.getloadavg()[0]:.0f}), one thread. `python -m benchmarks.codebooks --write`; {REPEATS} matrices of "
        f"{SIZE} × {SIZE} (one beyond {_MANY_STATES} states), mean error, least CPU time. "
        "Trellis tiles: 128 × 2, tail-biting included.",
        "",
        "| bits | codebook | MSE | over Shannon's bound 4^−bits | over scalar | CPU s per 10⁶ weights |",
        "|---|---|---|---|---|---|",
    ]
    scalar = {row.bits: row.mse for row in found if row.name == "scalar"}
    lines += [
        f"| {row.bits} | {row.name} | {row.mse:.4g} | {row.mse / row.bound:.3f} | {row.mse / scalar[row.bits]:.3f} "
        f"| {row.seconds:.2f} |"
        for row in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"record the table in {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = report(rows())
    print(text)
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
