"""Benchmark of the decomposition: error at equal bits beside the reference's records, on real matrices, and time.

    python -m benchmarks.decompose [--codebooks trellis-256,e8] [--shared ../shared] [--write]

``--write`` records the tables in benchmarks/results/decompose-cpu.md and the plot beside them. SHARED/reference holds
``make_matrices.py`` (makes the W, H pairs from fixed seeds) and ``reference_results.json`` (what CALDERA on QuIP#
reached on them); the bar for each (bits, rank, factor bits) is the lowest error of any record there, whatever its
settings. SHARED/data holds the second real model and its text. What is not there is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import vl_convert
from torch import Tensor

from benchmarks.real_matrices import RealMatrix, real_matrices
from compress_core import NUMERICS_VERSION, CompressionConfig, sweep_matrix
from compress_core.measurement import MatrixMeasurement

RESULTS = Path(__file__).parent / "results" / "decompose-cpu.md"
PLOT = RESULTS.with_suffix(".svg")
ROOT = Path(__file__).resolve().parent.parent
BITS = (2, 3, 4)
RANKS = (0, 8, 16, 32, 64)
#: the one rank of the three configs
RANK = 32
#: with so many states, two bits only: a config takes several seconds
_SLOW_STATES = 4096

#: name in the tables to its setting
CODEBOOKS = {
    "trellis-256": CompressionConfig(b_q=2, states=256),
    "trellis-1024": CompressionConfig(b_q=2, states=1024),
    "trellis-4096": CompressionConfig(b_q=2, states=_SLOW_STATES),
    "e8": CompressionConfig(b_q=2, codebook="e8"),
    "scalar": CompressionConfig(b_q=2, codebook="scalar"),
}
#: matrices of the real models that are measured; benchmarks/real_matrices.py measures all, at rank 0
DEMO, STORIES = ("0.k", "1.q", "3.gate"), ("0.v", "2.k", "4.down")
#: plain settings of what goes into the plot
PLOTTED = ("trellis-1024", "e8", "scalar")

#: b_q, rank, factor bits (None at rank 0)
Key = tuple[int, int, int | None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """The reference's lowest error at a config."""

    error: float
    bits_per_weight: float


@dataclass(frozen=True)
class Row:
    """One config of one matrix; ``seconds`` of CPU as part of a sweep."""

    matrix: str
    codebook: str
    key: Key
    ours: MatrixMeasurement
    seconds: float
    record: Record | None = None

    @property
    def ratio(self) -> float:
        """Our error over the reference's."""
        assert self.record is not None
        return self.ours.calibration_weighted_error / self.record.error


@dataclass(frozen=True)
class Times:
    """CPU seconds of a codebook on a 512 × 512 matrix."""

    codebook: str
    #: by rank: one config alone at 2 bits with 4-bit factors, H prepared too
    alone: dict[int, float]
    #: 3 b_q × 1 rank and 3 b_q × 5 ranks; None where that would take minutes
    three: float | None
    fifteen: float | None


def config_of(codebook: str, key: Key) -> CompressionConfig:
    bits, rank, factor_bits = key
    return replace(CODEBOOKS[codebook], b_q=bits, rank=rank, factor_bits=factor_bits or 4)


def offered(codebook: str, keys: Sequence[Key]) -> list[Key]:
    return [key for key in keys if key[0] == 2 or CODEBOOKS[codebook].states < _SLOW_STATES]


def sweep(matrix: str, codebook: str, w: Tensor, h: Tensor, records: dict[Key, Record | None]) -> list[Row]:
    """All keys of ``records`` that are measured with this codebook, in one sweep."""
    rows: list[Row] = []
    last = time.process_time()
    keys = {config_of(codebook, key): key for key in offered(codebook, list(records))}

    def take(measurement: MatrixMeasurement) -> None:
        nonlocal last
        key, now = keys[measurement.config], time.process_time()
        rows.append(Row(matrix, codebook, key, measurement, now - last, records[key]))
        last = now

    sweep_matrix(w, h, list(keys), on_measurement=take)
    order = list(keys.values())
    return sorted(rows, key=lambda row: order.index(row.key))


# --- the reference's matrices


@dataclass(frozen=True)
class ReferenceMatrix:
    name: str
    w_OI: Tensor
    h_II: Tensor
    records: dict[Key, Record | None]


def reference_matrices(folder: Path) -> Iterator[ReferenceMatrix]:
    """The matrices with what the reference reached on them."""
    spec = importlib.util.spec_from_file_location("make_matrices", folder / "make_matrices.py")
    assert spec is not None
    assert spec.loader is not None
    makers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(makers)
    raw = json.loads((folder / "reference_results.json").read_text())["records"]
    for name in makers.SPECS:
        w_OI, h_II = makers.make(name)
        yield ReferenceMatrix(name, w_OI, h_II, lowest(r for r in raw if r["matrix"] == name))


def lowest(raw: Iterator[dict[str, Any]]) -> dict[Key, Record | None]:
    """The record of least error for each config."""
    found: dict[Key, Record | None] = {}
    for record in sorted(raw, key=lambda r: r["act_err"]):
        key = (record["q_bits"], record["rank"], record["factor_bits"] if record["rank"] else None)
        found.setdefault(key, Record(record["act_err"], record["bpw"]))
    return dict(sorted(found.items(), key=lambda item: [x or 0 for x in item[0]]))


def grid(factor_bits: int = 4) -> list[Key]:
    return [(bits, rank, factor_bits if rank else None) for bits in BITS for rank in RANKS]


# --- time


def cpu_seconds(w: Tensor, h: Tensor, configs: Sequence[CompressionConfig]) -> float:
    started = time.process_time()
    sweep_matrix(w, h, configs)
    return time.process_time() - started


def measure_times(codebook: str, w: Tensor, h: Tensor) -> Times:
    cpu_seconds(w[:64], h, [config_of(codebook, key) for key in offered(codebook, grid()) if key[1] <= RANK])  # warm-up
    alone = {rank: cpu_seconds(w, h, [config_of(codebook, (2, rank, 4))]) for rank in (0, RANK)}
    if CODEBOOKS[codebook].states >= _SLOW_STATES:
        return Times(codebook, alone, None, None)
    three, fifteen = (
        cpu_seconds(w, h, [config_of(codebook, key) for key in grid() if key[1] in ranks]) for ranks in ((RANK,), RANKS)
    )
    return Times(codebook, alone, three, fifteen)


# --- real matrices


def chosen(model: Path, text: Path | None, names: Sequence[str]) -> Iterator[RealMatrix]:
    for matrix in real_matrices(model, text, samples=24, length=128):
        if str(matrix.key) in names:
            yield matrix


def real_models(data: Path) -> Iterator[tuple[str, RealMatrix]]:
    """Some matrices of the demo model and, where it is, of stories260K, with their real Hessians."""
    for matrix in chosen(ROOT / "demo" / "model", None, DEMO):
        yield f"demo {matrix.key}", matrix
    stories = data / "models" / "stories260K"
    if stories.is_dir():
        for matrix in chosen(stories, data / "tinystories" / "tinystories_val.txt", STORIES):
            yield f"stories260K {matrix.key}", matrix


# --- report


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: Sequence[Row]) -> list[str]:
    lines = ["| codebook | configs | geometric mean of ratios | largest | most bits more |", "|---|---|---|---|---|"]
    for codebook in dict.fromkeys(row.codebook for row in rows):
        for label, wanted in (("rank 0", None), ("4-bit factors", 4), ("16-bit factors", 16)):
            kept = [row for row in rows if row.codebook == codebook and row.key[2] == wanted and row.record]
            if kept:
                ratios = [row.ratio for row in kept]
                extra = max(row.ours.bits_per_weight - row.record.bits_per_weight for row in kept if row.record)
                lines.append(
                    f"| {codebook} | {label} ({len(kept)}) | {geometric_mean(ratios):.3f} | {max(ratios):.3f} "
                    f"| {extra:.3f} |"
                )
    return lines


def beside(rows: Sequence[Row]) -> list[str]:
    """A line a config; ratio and CPU seconds of each codebook."""
    codebooks = list(dict.fromkeys(row.codebook for row in rows))
    found = {(row.matrix, row.key, row.codebook): row for row in rows}
    lines = [
        f"| matrix | b_q | rank | factor bits | reference | bits | {' | '.join(codebooks)} |",
        "|---" * (6 + len(codebooks)) + "|",
    ]
    for matrix, key in dict.fromkeys((row.matrix, row.key) for row in rows):
        cells = []
        for codebook in codebooks:
            row = found.get((matrix, key, codebook))
            cells.append(
                f"{row.ours.calibration_weighted_error:.5f} ({row.ratio:.3f}), {row.seconds:.1f} s" if row else ""
            )
        record = next(row.record for row in rows if (row.matrix, row.key) == (matrix, key))
        assert record is not None
        lines.append(
            f"| {matrix} | {key[0]} | {key[1]} | {key[2] or ''} | {record.error:.5f} | {record.bits_per_weight:.3f} "
            f"| {' | '.join(cells)} |"
        )
    return lines


def plain(rows: Sequence[Row]) -> list[str]:
    """A line a matrix, b_q and rank, without a reference."""
    codebooks = list(dict.fromkeys(row.codebook for row in rows))
    found = {(row.matrix, row.key, row.codebook): row for row in rows}
    lines = [f"| matrix | b_q | rank | bits | {' | '.join(codebooks)} |", "|---" * (4 + len(codebooks)) + "|"]
    for matrix, key in dict.fromkeys((row.matrix, row.key) for row in rows):
        kept = [found[matrix, key, codebook] for codebook in codebooks if (matrix, key, codebook) in found]
        cells = [f"{row.ours.calibration_weighted_error:.3g}, {row.seconds:.2f} s" for row in kept]
        cells += [""] * (len(codebooks) - len(cells))
        bits = kept[0].ours.bits_per_weight
        lines.append(f"| {matrix} | {key[0]} | {key[1]} | {bits:.3f} | {' | '.join(cells)} |")
    return lines


def time_table(times: Sequence[Times]) -> list[str]:
    lines = [
        f"| codebook | rank 0 | rank {RANK} | 3 configs | 15 configs | 15 over 3 |",
        "|---|---|---|---|---|---|",
    ]
    for t in times:
        many = "| | |" if t.three is None or t.fifteen is None else (
            f"| {t.three:.2f} | {t.fifteen:.2f} | {t.fifteen / t.three:.2f} "
        )  # fmt: skip
        lines.append(f"| {t.codebook} | {t.alone[0]:.2f} | {t.alone[RANK]:.2f} {many}|")
    return lines


def plot(rows: Sequence[Row]) -> str:
    """Error against bits a weight, ours and theirs, as SVG."""
    points = []
    for row in rows:
        factors = f"{row.key[2]}-bit factors" if row.key[2] else "rank 0"
        common = {"matrix": row.matrix, "factors": factors, "b_q": row.key[0], "rank": row.key[1]}
        if row.codebook in PLOTTED:
            point = {"maker": f"ours, {row.codebook}", "bits": row.ours.bits_per_weight}
            points.append(common | point | {"error": row.ours.calibration_weighted_error})
        if row.record and row.codebook == rows[0].codebook:
            point = {"maker": "reference, best record", "bits": row.record.bits_per_weight, "error": row.record.error}
            points.append(common | point)
    makers = list(dict.fromkeys(point["maker"] for point in points))
    makers = ["reference, best record", *(maker for maker in makers if maker != "reference, best record")]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": points},
        "facet": {"column": {"field": "matrix", "type": "nominal", "title": None}},
        "spec": {
            "width": 380,
            "height": 300,
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.85},
            "encoding": {
                "x": {"field": "bits", "type": "quantitative", "title": "bits a weight", "scale": {"zero": False}},
                "y": {
                    "field": "error", "type": "quantitative", "title": "calibration_weighted_error",
                    "scale": {"type": "log"}, "axis": {"format": ".0e"},
                },
                "color": {
                    "field": "maker", "type": "nominal", "title": None, "sort": makers,
                    "scale": {"range": ["#b2182b", "#2166ac", "#67a9cf", "#7f7f7f"]},
                },
                "shape": {"field": "factors", "type": "nominal", "title": None},
            },
        },
        "config": {"background": "white"},
    }  # fmt: skip
    return vl_convert.vegalite_to_svg(spec)


def report(beside_rows: Sequence[Row], real_rows: Sequence[Row], times: Sequence[Times], left_out: str) -> str:
    lines = [
        "# Decomposition on the CPU",
        "",
        f"{date.today():%Y-%m-%d}; numerics version {NUMERICS_VERSION}, Python {platform.python_version()}, torch "
        f"{torch.__version__}; {os.cpu_count()} cores ({platform.machine()}), shared with other work (load "
        f"{os.getloadavg()[0]:.0f}), one thread. `python -m benchmarks.decompose --write`. Default settings but for "
        "the codebook and its states. Errors are calibration_weighted_error on the raw H; bits count every stored "
        f"byte. Seconds are of the CPU.{left_out}",
        "",
    ]
    if beside_rows:
        lines += [
            "## Beside the reference",
            "",
            "Reference: the lowest record of CALDERA on QuIP# at that config, whatever its settings; its bits leave "
            "scales and signs out. Ratio: ours over the reference's. trellis-4096 stands for 2 bits only.",
            "",
            *summary(beside_rows),
            "",
            f"![error against bits a weight]({PLOT.name})",
            "",
            "Error (ratio), and seconds as part of one sweep, whose first config of each b_q pays for what all share:",
            "",
            *beside(beside_rows),
            "",
        ]
    if times:
        lines += [
            "## Time",
            "",
            "CPU seconds on a 512 × 512 matrix after warm-up: one config alone (2 bits, 4-bit factors), and sweeps "
            f"over b_q 2, 3, 4 with rank {RANK}, or with ranks {', '.join(map(str, RANKS))}.",
            "",
            *time_table(times),
            "",
        ]
    lines += ["## Real matrices with their real Hessians, 4-bit factors", "", *plain(real_rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of reference/ and data/")
    parser.add_argument("--codebooks", default=",".join(CODEBOOKS), help=f"of {', '.join(CODEBOOKS)}")
    parser.add_argument("--write", action="store_true", help=f"record the tables in {RESULTS.name}, and the plot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codebooks = args.codebooks.split(",")
    beside_rows: list[Row] = []
    times: list[Times] = []
    reference, data, left_out = args.shared / "reference", args.shared / "data", ""
    if reference.is_dir():
        for number, matrix in enumerate(reference_matrices(reference)):
            for codebook in codebooks:
                if number == 0:
                    times.append(measure_times(codebook, matrix.w_OI, matrix.h_II))
                beside_rows += sweep(matrix.name, codebook, matrix.w_OI, matrix.h_II, matrix.records)
    else:
        left_out += f" Left out: the reference's matrices, which are not at {reference}."
    if not data.is_dir():
        left_out += f" Left out: stories260K, which is not at {data}."
    keys: dict[Key, Record | None] = {key: None for key in grid() if key[1] in (0, 16)}
    real_rows = [
        row
        for name, matrix in real_models(data)
        for codebook in codebooks
        for row in sweep(name, codebook, matrix.w_OI, matrix.h_II, keys)
    ]
    text = report(beside_rows, real_rows, times, left_out)
    print(text)
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)
        if beside_rows:
            PLOT.write_text(plot(beside_rows))


if __name__ == "__main__":
    main()
