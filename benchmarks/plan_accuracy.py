"""Does a plan's time come true? Probe this machine, plan the demo's sweep, run it, compare.

    python -m benchmarks.plan_accuracy [--study configs/demo.yaml] [--threads 1] [--seconds 60] [--write]

The sweep is that of the study's ``sweep`` step (the demo: 42 matrices with 9 configs of the grid and 3 of
round-to-nearest), run as the worker's handler runs it, on a calibration of the study's model. No database is asked, so
the prices are the probe's alone.

The machine is probed before the sweep and again after it. Processor seconds do not depend on who else is at work: the
ratio of these judges the prices. Wall time is told as the plan tells it, from the share of the processor that the
probes before and after had; between them the load may have changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from compress_core.calibrate.run import calibrate_model
from compress_core.checkpoint import Checkpoint, open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.config import CompressionConfig
from compress_core.plan import ModelShapes, Pricer, Rates
from compress_core.probe import probe
from compress_core.shared_inputs import SharedInputs
from compress_core.sweep import sweep_matrix
from compress_core.text import TextSource, split_text
from compress_core.text.tokens import sampled_windows
from compress_core.version import NUMERICS_VERSION
from server.plans.service import probe_params
from server.studies.plan import plan_study
from server.studies.schemas import StudyConfig

OUT = Path("benchmarks/results/plan-accuracy-cpu.md")
#: windows of the calibration: what a sweep takes does not depend on them
SAMPLES, LENGTH = 16, 256


@dataclass(frozen=True)
class Took:
    """What a sweep really took."""

    wall: float
    processor: float
    cells: int


def shapes_of(checkpoint: Checkpoint) -> ModelShapes:
    return ModelShapes.from_headers(
        checkpoint.config,
        checkpoint.matrices(),
        fixed_bytes=checkpoint.other_bytes,
        original_bytes=checkpoint.other_bytes + checkpoint.matrix_bytes,
        name=checkpoint.path.name,
        origin="headers",
    )


def sweep_configs(study: StudyConfig) -> list[CompressionConfig]:
    """What the study's sweep measures."""
    step = next(step for step in plan_study(study, "model", fetch=False) if step.name == "sweep")
    return [CompressionConfig.from_dict(fields) for fields in step.params["configs"]]


def run_sweep(checkpoint: Checkpoint, configs: list[CompressionConfig]) -> Took:
    """The sweep, as a worker runs it; the calibration before it is not counted."""
    text = split_text(TextSource("stdlib"), "calibrate")
    tokens = sampled_windows(checkpoint.path, text, samples=SAMPLES, length=LENGTH, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        hessians = calibrate_model(checkpoint, tokens, Path(folder) / "calibration", source="stdlib", seed=0)
        inputs = SharedInputs(hessians, torch.device("cpu"))
        cells = 0
        wall, processor = time.perf_counter(), time.process_time()
        for spec in checkpoint.matrices():
            own = list(dict.fromkeys(c.clamped(spec.out_features, spec.in_features) for c in configs))
            shared = inputs.of(spec)
            weight = read_matrix(checkpoint, spec)
            cells += len(sweep_matrix(weight, shared.h_II, own, device=shared.device, shared=shared))
        return Took(time.perf_counter() - wall, time.process_time() - processor, cells)


def measure(study: StudyConfig, seconds: float) -> Rates:
    configs = [CompressionConfig.from_dict(fields) for fields in probe_params(study)["configs"]]
    with tempfile.TemporaryDirectory() as folder:
        return probe(Path(folder), configs=configs, seconds=seconds)


def report(study: StudyConfig, before: Rates, after: Rates, predicted: tuple[float, float], took: Took) -> str:
    processor = took.processor / before.threads
    busy = ((before.busy or 1) + (after.busy or 1)) / 2
    wall = predicted[0] / busy
    rows = [
        ("processor seconds a thread, probe before", predicted[0], processor),
        ("processor seconds a thread, probe after", predicted[1], processor),
        (f"wall seconds (the probes had {before.busy:.0%} and {after.busy:.0%} of the processor)", wall, took.wall),
    ]
    lines = [
        "# How true a plan's time is, on the CPU",
        "",
        f"{date.today()}; numerics version {NUMERICS_VERSION}, torch {torch.__version__}, {before.device_name}, "
        f"{before.threads} thread of 2 cores, shared with other work. `python -m benchmarks.plan_accuracy --write`.",
        "",
        f"The sweep of `{study.name}`: {took.cells} cells. Nothing that the database holds was used. The sweep had "
        f"{processor / took.wall:.0%} of the processor.",
        "",
        "| | predicted | measured | predicted / measured |",
        "|---|---|---|---|",
        *(f"| {name} | {told:.1f} | {was:.1f} | {told / was:.2f} |" for name, told, was in rows),
        "",
        f"The plan says that its times may be off by a factor of {before.uncertainty:.2f} either way. A large float32 "
        f"product ran at {before.product / 1e9:.0f} GFLOP/s of processor time, a layer's forward pass at "
        f"{before.forward / 1e9:.0f}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    raw: dict[str, Any] = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    study = StudyConfig.model_validate(raw)
    checkpoint = open_checkpoint(study.model.source)
    shapes, configs = shapes_of(checkpoint), sweep_configs(study)
    before = measure(study, arguments.seconds)
    print(f"probed: {before.busy:.0%} of the processor", file=sys.stderr, flush=True)
    took = run_sweep(checkpoint, configs)
    print(f"swept: {took}", file=sys.stderr, flush=True)
    after = measure(study, arguments.seconds)
    told = [Pricer(shapes, rates).sweep(configs).seconds for rates in (before, after)]
    text = report(study, before, after, (told[0] or 0.0, told[1] or 0.0), took)
    print(text)
    if arguments.write:
        OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
