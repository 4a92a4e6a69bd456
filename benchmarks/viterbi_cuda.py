"""Benchmark of the trellis search on a CUDA card: Triton's kernel beside the same search in plain torch.

    python -m benchmarks.viterbi_cuda [--write]

``--write`` records the table in benchmarks/results/viterbi-cuda.md. Tiles of 128 rows × 2 columns of a unit Gaussian:
28 of them are a column block of 3584 rows, 224 the same with eight candidates at once. The table holds Gaussian
quantiles in random order. Times are medians of CUDA events, after a first launch that compiles.

It refuses to run without a CUDA device or without Triton.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from compress_core.codebooks.viterbi import states_of, torch_ops

RESULTS = Path(__file__).parent / "results" / "viterbi-cuda.md"
#: (bits, log states)
TRELLISES = (
    (2, 8), (2, 10), (2, 12), (2, 14), (2, 16),
    (3, 12), (3, 16), (4, 12), (4, 16), (8, 12),
)  # fmt: skip
TILES = (28, 224)
LENGTH = 256
REPEATS = 20
#: plain torch takes long enough to be timed by fewer
PLAIN_REPEATS = 3


@dataclass(frozen=True)
class Row:
    bits: int
    log_states: int
    tiles: int
    triton_s: float
    plain_s: float
    mse: float
    plain_mse: float


def gaussian_table(log_states: int) -> Tensor:
    """Quantiles of a unit Gaussian in random order (S,)."""
    order_S = torch.randperm(1 << log_states, generator=torch.Generator().manual_seed(0))
    return torch.special.ndtri((order_S + 0.5) / (1 << log_states)).cuda()


def seconds(search: Callable[[], Tensor], repeats: int) -> float:
    """Median time of a call on the card; the first call, which compiles, does not count."""
    search()
    times = []
    for _ in range(repeats):
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started.record()
        search()
        ended.record()
        ended.synchronize()
        times.append(started.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def measure() -> list[Row]:
    from compress_core.codebooks.viterbi.triton_ops import viterbi_triton

    rows = []
    for bits, log_states in TRELLISES:
        table_S = gaussian_table(log_states)
        for tiles in TILES:
            x_NT = torch.randn(tiles, LENGTH, generator=torch.Generator().manual_seed(1)).cuda()

            def mse(symbols_NT: Tensor, x_NT: Tensor = x_NT, table_S: Tensor = table_S, bits: int = bits) -> float:
                states_NT = states_of(symbols_NT, bits, table_S.numel().bit_length() - 1)
                return float((x_NT - table_S[states_NT.long()]).square().mean())

            rows.append(
                Row(
                    bits,
                    log_states,
                    tiles,
                    seconds(lambda x=x_NT, t=table_S, b=bits: viterbi_triton(x, t, b), REPEATS),
                    seconds(lambda x=x_NT, t=table_S, b=bits: torch_ops.viterbi(x, t, b), PLAIN_REPEATS),
                    mse(viterbi_triton(x_NT, table_S, bits)),
                    mse(torch_ops.viterbi(x_NT, table_S, bits)),
                )
            )
    return rows


def report(rows: list[Row]) -> str:
    import triton

    lines = [
        "# Trellis search on a CUDA card",
        "",
        f"{date.today():%Y-%m-%d}; {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "
        f"torch {torch.__version__}, Triton {triton.__version__}, "
        f"Python {platform.python_version()}; host load {os.getloadavg()[0]:.0f}. "
        f"`python -m benchmarks.viterbi_cuda --write`; tiles of {LENGTH} weights, tail-biting included; median of "
        f"{REPEATS} launches, of {PLAIN_REPEATS} for plain torch.",
        "",
        "| bits | states | tiles | Triton, ms | s per million weights | plain torch, ms | plain / Triton "
        "| MSE | plain MSE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.bits} | 2^{row.log_states} | {row.tiles} | {1e3 * row.triton_s:.2f} "
            f"| {1e6 * row.triton_s / (row.tiles * LENGTH):.4f} | {1e3 * row.plain_s:.1f} "
            f"| {row.plain_s / row.triton_s:.0f}× | {row.mse:.5f} | {row.plain_mse:.5f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"record the table in {RESULTS.name}")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"viterbi_cuda measures on a CUDA card, and torch {torch.__version__} sees none")
    if find_spec("triton") is None:
        raise SystemExit("viterbi_cuda measures Triton's kernel, and Triton is not installed")
    text = report(measure())
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
