"""Memory and time of calibrating, sweeping and compressing models of true shapes, beside what is promised.

    python -m benchmarks.scale [--cases 1.5bx2,1.5bx4,7bx1] [--phases calibrate,sweep,compress] [--threads 1] [--write]

A case is a Qwen2 shape and a number of layers, written by ``benchmarks.synthetic_checkpoint`` into a temporary folder.
Each phase runs in a process of its own, with the calls that the worker's handlers make and the modules that the
worker has imported; its memory is read from /proc every 20 ms by the process that started it:

    calibrate   H of every input, from windows of the standard library's text, into files
    sweep       all configs of all matrices, with H from those files
    compress    a packed model with the last config everywhere, with H from those files
    sweep-onepass, compress-onepass
                the same, with H computed as they come to a layer, and none kept

``--write`` adds the rows to benchmarks/results/scale-cpu.md, in place of older rows of the
same case, phase and configs.

The promise for a sweep is 4 × the largest matrix and 3 × its H, in float32, and 1.5 GB, of anonymous memory (pages of
mapped files are the system's to take back), and the same whatever the number of layers.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from benchmarks.synthetic_checkpoint import SHAPES
from compress_core import CompressionConfig, sweep_matrix
from compress_core.calibrate.calibration import Calibration
from compress_core.calibrate.run import calibrate_model, keep_tokens
from compress_core.calibrate.source import HessianSource
from compress_core.calibrate.streamed import StreamedCalibration
from compress_core.checkpoint import Checkpoint, open_checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.matrix import MatrixSpec
from compress_core.pack.writer import write_packed_model
from compress_core.shared_inputs import SharedInput, SharedInputs
from compress_core.text import TextSource, split_text
from compress_core.text.tokens import TokenWindows, sampled_windows
from worker.handlers.sweep import plan_sweep
from worker.main import _preload

RESULTS = Path(__file__).parent / "results"
PHASES = ("calibrate", "sweep", "compress", "sweep-onepass", "compress-onepass")
CASES = "1.5bx2,1.5bx4"
#: what a sweep may take beside its matrix and H
ALLOWANCE = 1.5e9
_SEED = 0
_EVERY_S = 0.02


@dataclass(frozen=True)
class Row:
    case: str
    phase: str
    configs: tuple[str, ...]
    samples: int
    length: int
    threads: int
    wall_seconds: float
    cpu_seconds: float
    #: the largest RssAnon in bytes: heap and stacks, what the promise is about
    anonymous: float
    #: the largest RssFile + RssShmem: mapped files, which the system may take back
    mapped: float
    #: VmHWM: the largest sum of both, as the kernel counted it
    resident: float
    #: RssAnon before the job
    before: float
    made: str


@dataclass(frozen=True)
class Task:
    """What a child is to do; its JSON is the child's argument."""

    phase: str
    #: holds model/, and what the phases make of it
    folder: Path
    configs: tuple[str, ...]
    samples: int
    length: int
    threads: int

    def to_json(self) -> str:
        return json.dumps({**vars(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> Task:
        values = json.loads(text)
        return cls(**{**values, "folder": Path(values["folder"]), "configs": tuple(values["configs"])})


def promised(case: str) -> float:
    """Bytes: 4 × the largest matrix, 3 × the largest H, float32, and the allowance."""
    shape = SHAPES[case.split("x")[0]]
    wide, narrow = shape.intermediate_size, shape.hidden_size
    return 4.0 * (4 * wide * narrow + 3 * wide * wide) + ALLOWANCE


def parse_config(text: str) -> CompressionConfig:
    """``e8-2-32``: codebook, bits, rank."""
    codebook, bits, rank = text.split("-")
    return CompressionConfig(b_q=int(bits), rank=int(rank), codebook=codebook)


# ---- the child


def run_child(task: Task) -> None:
    """One phase. Says "ready" once it has what a worker has before a job, and waits for a line before it begins."""
    _preload()
    torch.set_num_threads(task.threads)
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    checkpoint = open_checkpoint(task.folder / "model")
    configs = [parse_config(text) for text in task.configs]
    if task.phase == "calibrate":
        calibrate(checkpoint, task)
    else:
        hessians = hessians_of(checkpoint, task)
        if task.phase.startswith("sweep"):
            sweep(checkpoint, hessians, configs)
        else:
            compress(checkpoint, hessians, configs[-1], task.folder / "packed")
        hessians.close()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


def windows(checkpoint: Checkpoint, task: Task) -> TokenWindows:
    text = split_text(TextSource(), "calibrate")
    return sampled_windows(checkpoint.path, text, samples=task.samples, length=task.length, seed=_SEED)


def calibrate(checkpoint: Checkpoint, task: Task) -> None:
    """H of all layers; and the tokens alone, for the phases that compute H themselves."""
    tokens = windows(checkpoint, task)
    calibrate_model(checkpoint, tokens, task.folder / "hessians", source="stdlib", seed=_SEED)
    keep_tokens(checkpoint, tokens, task.folder / "tokens", source="stdlib", seed=_SEED)


def hessians_of(checkpoint: Checkpoint, task: Task) -> HessianSource:
    if task.phase.endswith("onepass"):
        scratch = task.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        return StreamedCalibration.open(task.folder / "tokens", checkpoint, scratch)
    return Calibration.open(task.folder / "hessians", checkpoint)


def sweep(checkpoint: Checkpoint, hessians: HessianSource, configs: list[CompressionConfig]) -> None:
    """As the worker's handler goes through a model."""
    inputs = SharedInputs(hessians, torch.device("cpu"))
    for spec, fitting in plan_sweep(checkpoint, configs).rows:
        measure_matrix(checkpoint, spec, fitting, inputs.of(spec))


def measure_matrix(
    checkpoint: Checkpoint, spec: MatrixSpec, configs: Sequence[CompressionConfig], shared: SharedInput
) -> None:
    """A function, as in the handler: nothing of one matrix is held while the next input is prepared."""
    for m in sweep_matrix(read_matrix(checkpoint, spec), shared.h_II, configs, device=shared.device, shared=shared):
        print(f"{spec.key} {m.config} {m.calibration_weighted_error:.5f} {m.seconds:.0f} s", file=sys.stderr)


def compress(checkpoint: Checkpoint, hessians: HessianSource, config: CompressionConfig, out: Path) -> None:
    items = {spec.key: config.clamped(spec.out_features, spec.in_features) for spec in checkpoint.matrices()}
    write_packed_model(checkpoint, hessians, items, out)


# ---- the parent


def status(pid: int) -> dict[str, float]:
    """Lines of /proc/PID/status in bytes; empty once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: 1024.0 * int(kilobytes) for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


@contextmanager
def watched(pid: int) -> Iterator[dict[str, float]]:
    """Peaks of a process while the block runs, complete when it ends."""
    peaks = {"RssAnon": 0.0, "Mapped": 0.0, "VmHWM": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_S):
            now = status(pid)
            if "RssAnon" in now:
                now["Mapped"] = now["RssFile"] + now["RssShmem"]
                peaks.update({name: max(value, now[name]) for name, value in peaks.items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def measure(case: str, task: Task) -> Row:
    """Run a phase in a child and watch it.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.scale", "--child", task.to_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = status(child.pid).get("RssAnon", 0.0)
        with watched(child.pid) as peaks:
            child.stdin.write("go\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        if child.wait() or not answer:
            raise subprocess.CalledProcessError(child.returncode, command)
    spent = json.loads(answer)
    return Row(
        case, task.phase, task.configs, task.samples, task.length, task.threads, spent["wall"], spent["cpu"],
        peaks["RssAnon"], peaks["Mapped"], peaks["VmHWM"], before, str(date.today()),
    )  # fmt: skip


def make_checkpoint(case: str, folder: Path) -> None:
    name, layers = case.split("x")
    command = [sys.executable, "-m", "benchmarks.synthetic_checkpoint", name, str(folder), "--layers", layers]
    subprocess.run(command, check=True)


def report(rows: list[Row]) -> str:
    lines = [
        "# Models of true shapes on the CPU",
        "",
        "Made by `benchmarks/scale.py`, which says what a phase is and how memory is read, from checkpoints by "
        f"`benchmarks/synthetic_checkpoint.py`; torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, a machine shared with other work (wall times say little).",
        "",
        "*anonymous*: the largest RssAnon, of which *before* was there before the job; *mapped*: the largest RssFile "
        "and RssShmem; *resident*: VmHWM. *promise*, which is a sweep's: 4 × the largest matrix, 3 × its H, in "
        "float32, and 1.5 GB.",
        "",
        "| model × layers | phase | configs | windows | threads | wall s | CPU s | anonymous MB | before | mapped MB | "
        "resident MB | promise MB | anonymous / promise | made |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        configs = "" if r.phase == "calibrate" else ", ".join(r.configs)
        drawn = f"{r.samples} × {r.length}" if r.phase == "calibrate" or r.phase.endswith("onepass") else ""
        lines.append(
            f"| {r.case.replace('x', ' × ')} | {r.phase} | {configs} | {drawn} | {r.threads} | {r.wall_seconds:.0f} | "
            f"{r.cpu_seconds:.0f} | {r.anonymous / 1e6:.0f} | {r.before / 1e6:.0f} | {r.mapped / 1e6:.0f} | "
            f"{r.resident / 1e6:.0f} | {promised(r.case) / 1e6:.0f} | {r.anonymous / promised(r.case):.2f} | {r.made} |"
        )
    for phase in PHASES:
        peaks = {(r.case, r.configs): r.anonymous for r in rows if r.phase == phase}
        for (case, configs), peak in peaks.items():
            if case == "1.5bx2" and ("1.5bx4", configs) in peaks:
                more = peaks["1.5bx4", configs] / peak - 1
                lines += [
                    "",
                    f"{phase}, {', '.join(configs)}: 4 layers of 1.5b take {more:+.1%} on top of what 2 take.",
                ]
    return "\n".join(lines) + "\n"


def recorded(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [Row(**{**row, "configs": tuple(row["configs"])}) for row in json.loads(path.read_text())]


def record(row: Row) -> None:
    store = RESULTS / "scale-cpu.json"
    rows = [r for r in recorded(store) if (r.case, r.phase, r.configs) != (row.case, row.phase, row.configs)] + [row]
    rows.sort(key=lambda r: (list(SHAPES).index(r.case.split("x")[0]), PHASES.index(r.phase), r.case))
    store.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    store.with_suffix(".md").write_text(report(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--configs", default="scalar-2-0,e8-2-32", help="codebook-bits-rank, …")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep checkpoints and artefacts here, and use what is there")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        run_child(Task.from_json(arguments.child))
        return
    with tempfile.TemporaryDirectory(prefix="bitbudget-scale-") as temporary:
        for case in arguments.cases.split(","):
            folder = (arguments.folder or Path(temporary)) / case
            if not (folder / "model" / "config.json").exists():
                make_checkpoint(case, folder / "model")
            for phase in arguments.phases.split(","):
                for made in ("hessians", "tokens") if phase == "calibrate" else ("packed",):
                    shutil.rmtree(folder / made, ignore_errors=True)
                configs = tuple(arguments.configs.split(","))
                task = Task(phase, folder, configs, arguments.samples, arguments.length, arguments.threads)
                row = measure(case, task)
                print(json.dumps(asdict(row)), flush=True)
                if arguments.write:
                    record(row)
            if arguments.folder is None:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
