"""Projection shapes of Qwen2 at full size: time, memory beside the promise, and how far from what arithmetic allows.

    python -m benchmarks.shapes [--shapes 1.5b,3584x18944] [--threads 2] [--device cuda] [--write]

``--shapes`` takes names of models (all their shapes) and single shapes. Each runs in a process of its own, so that its
peak of resident memory is its own; its H comes from a file that another process has written. One config: ``--b-q 2
--rank 64``, 4-bit factors, and otherwise the defaults. ``--write`` adds the rows to benchmarks/results/shapes-cpu.md
(or -cuda.md), in place of older rows of the same shapes.

W has Gaussian rows of unequal norms; H is the second moment of activations that are a mixture of some hundred
directions with a decaying spectrum, and noise of its own in every channel.

The promise is 4 × the float32 bytes of W plus 3 × those of H for all of the process: interpreter, libraries, W as the
caller holds it, and H as it is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from compress_core import CompressionConfig, alternation, sweep_matrix
from compress_core.rooted_hessian import EXACT_WIDTH

RESULTS = Path(__file__).parent / "results"
#: (out_features, in_features); those with 29568 inputs as a slice of rows
MODELS = {
    "1.5b": ((1536, 1536), (256, 1536), (8960, 1536), (1536, 8960)),
    "7b": ((3584, 3584), (512, 3584), (18944, 3584), (3584, 18944)),
    "72b": ((8192, 8192), (1024, 8192), (29568, 8192), (1024, 29568)),
}
#: directions of the activations
DIRECTIONS = 256


@dataclass(frozen=True)
class Row:
    shape: tuple[int, int]
    config: str
    threads: int
    wall_seconds: float
    cpu_seconds: float
    #: bytes: the peak, what was resident before W and H were there, and the promise
    peak: float
    before: float
    promise: float
    error: float
    #: seconds that the products, and the trellis search, would take at the measured rate of large float32 products
    product_floor: float
    search_floor: float
    #: that rate, float32 operations a second
    rate: float
    made: str

    @property
    def share(self) -> float:
        return (self.product_floor + self.search_floor) / self.wall_seconds


def write_hessian(width: int, path: Path) -> None:
    """E[x xᵀ] of x = F z + noise, float32, row by row."""
    g = torch.Generator().manual_seed(width)
    f_IK = torch.randn(width, DIRECTIONS, generator=g) * torch.arange(1, DIRECTIONS + 1) ** -0.6
    f_IK *= torch.exp(0.5 * torch.randn(width, 1, generator=g))
    noise_I = 0.3 * torch.exp(torch.randn(width, generator=g))
    with path.open("wb") as file:
        for first in range(0, width, 1024):
            rows_PI = f_IK[first : first + 1024] @ f_IK.T
            rows_PI[:, first:].diagonal().add_(noise_I[first : first + 1024])
            rows_PI.numpy().tofile(file)


def make_weight(out_features: int, in_features: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(out_features + in_features)
    w_OI = torch.randn(out_features, in_features, generator=g)
    return w_OI.mul_(0.02 * torch.exp(0.4 * torch.randn(out_features, 1, generator=g)))


def product_rate(device: str) -> float:
    """float32 operations a second in a product of two 4096² matrices: the best of five."""
    a, b = torch.randn(2, 4096, 4096, device=device)
    best = math.inf
    for _ in range(6):  # the first warms up
        started = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * 4096**3 / best


@dataclass(frozen=True)
class Passes:
    """How often a config's steps go over all weights."""

    rounding: int
    descent: int
    errors: int

    @classmethod
    def of(cls, config: CompressionConfig, width: int) -> Passes:
        search = alternation.narrow_search(config.codebook, width)
        wide, narrow = len(alternation._WIDE_STEPS), len(search.steps)
        descent = narrow * search.passes + alternation._FINAL_PASSES
        if not config.rank:
            return cls(wide + narrow, descent, wide + narrow + 1)
        return cls(wide + narrow + 1, descent + config.iterations - 1, wide + narrow + 2)


def product_operations(out_features: int, in_features: int, config: CompressionConfig) -> float:
    """Operations of the method's large products; those in float64 count twice.

    With n² m for half a product with H (rounding, S) and 2 n² m for a whole one (descent, measuring).
    """
    m, n, r = out_features, in_features, config.rank
    passes = Passes.of(config, in_features)
    factors = 2 + (2 if r and n > EXACT_WIDTH else 1 if r else 0)
    total = factors * n**3 / 3 * (2 if n <= EXACT_WIDTH else 1)
    total += n * n * m * (passes.rounding + passes.errors + 2 * passes.descent)
    if r:
        k = r + 8
        images = 13 + 7 + 5 * config.iterations  # of the subspace iterations
        total += images * (n * n * k + 2 * m * n * k)
    return total + 2 * (2 * 2 * n * n * m)


def search_operations(out_features: int, in_features: int, config: CompressionConfig) -> float:
    """Subtract, square, add, compare: once for each state, weight and pass."""
    if config.codebook != "trellis":
        return 0.0
    passes = Passes.of(config, in_features)
    return 4.0 * config.states * out_features * in_features * (passes.rounding + passes.descent)


def resident(name: str) -> float:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def run_one(shape: tuple[int, int], config: CompressionConfig, device: str, hessian: Path, rate: float) -> Row:
    """In a process of its own."""
    before = resident("VmRSS")
    width = shape[1]
    w_OI = make_weight(*shape)

    def load() -> torch.Tensor:
        return torch.from_numpy(np.fromfile(hessian, dtype=np.float32).reshape(width, width))

    wall, cpu = time.perf_counter(), time.process_time()
    measured = sweep_matrix(w_OI, load, [config], device=device)[0]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if device == "cpu":
        peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        peak, before = torch.cuda.max_memory_allocated(), 0.0
    return Row(
        shape, str(config), torch.get_num_threads(), wall, cpu, peak, before,
        4 * (4 * shape[0] * width + 3 * width * width), measured.calibration_weighted_error,
        product_operations(*shape, config) / rate, search_operations(*shape, config) / rate, rate,
        str(date.today()),
    )  # fmt: skip


def in_child(arguments: argparse.Namespace, *extra: str) -> str:
    command = [sys.executable, "-m", "benchmarks.shapes", "--threads", str(arguments.threads), "--device"]
    command += [arguments.device, "--b-q", str(arguments.b_q), "--rank", str(arguments.rank), *extra]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def report(rows: list[Row], device: str) -> str:
    memory = "of the card" if device == "cuda" else "resident"
    lines = [
        f"# Full-size projection shapes on {'a card' if device == 'cuda' else 'the CPU'}",
        "",
        "Made by `benchmarks/shapes.py` (which says how W and H are made); "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}." if device == "cuda" else ", a machine shared with other work."),
        "",
        "*floor*: the operations of the method's products, and of its trellis search, over the rate of a 4096³ float32 "
        "product measured just before; *share*: both floors over the wall time. Peak memory "
        f"({memory}) is of the whole process, of which *before* was there before W and H; *promise*: 4 × W + 3 × H in "
        "float32. It is for matrices that are large beside an interpreter with its libraries and pieces of a fixed "
        "size, some 0.5 GB together.",
        "",
        "| out × in | config | threads | wall s | CPU s | floor: products | search | GFLOP/s | share | peak MB | "
        "before | promise MB | peak / promise | error | made |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.shape[0]} × {r.shape[1]} | {r.config} | {r.threads} | {r.wall_seconds:.0f} | {r.cpu_seconds:.0f} | "
            f"{r.product_floor:.1f} | {r.search_floor:.1f} | {r.rate / 1e9:.0f} | {r.share:.0%} | {r.peak / 1e6:.0f} | "
            f"{r.before / 1e6:.0f} | {r.promise / 1e6:.0f} | {r.peak / r.promise:.2f} | {r.error:.5f} | {r.made} |"
        )
    return "\n".join(lines) + "\n"


def recorded(path: Path) -> list[Row]:
    return (
        [Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(path.read_text())] if path.exists() else []
    )


def shapes_of(names: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for name in names.split(","):
        if name in MODELS:
            found += MODELS[name]
        else:
            rows, columns = name.split("x")
            found.append((int(rows), int(columns)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1.5b", help=f"{', '.join(MODELS)} or shapes like 1536x8960")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--b-q", type=int, default=2)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--hessian", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = CompressionConfig(b_q=arguments.b_q, rank=arguments.rank)
    shapes = shapes_of(arguments.shapes)
    if arguments.hessian is not None:
        if arguments.make:
            write_hessian(shapes[0][1], arguments.hessian)
        else:
            row = run_one(shapes[0], config, arguments.device, arguments.hessian, arguments.rate)
            print(json.dumps(asdict(row)))
        return
    store = RESULTS / f"shapes-{arguments.device}.json"
    for shape in shapes:
        name = f"{shape[0]}x{shape[1]}"
        print(f"{name} …", file=sys.stderr, flush=True)
        rate = product_rate(arguments.device)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "hessian.f32")
            in_child(arguments, "--shapes", name, "--hessian", path, "--make")
            answer = in_child(arguments, "--shapes", name, "--hessian", path, "--rate", str(rate))
        row = json.loads(answer.splitlines()[-1])
        print(json.dumps(row), flush=True)
        if arguments.write:
            rows = [r for r in recorded(store) if r.shape != shape] + [Row(**{**row, "shape": shape})]
            rows.sort(key=lambda r: (r.shape[1], r.shape[0]))
            store.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
            (RESULTS / f"shapes-{arguments.device}.md").write_text(report(rows, arguments.device))


if __name__ == "__main__":
    main()
