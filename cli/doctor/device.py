"""What the worker would compute on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.doctor.finding import Finding, fail, ok, warn
from cli.output import nbytes
from cli.stack.plan import environment
from results_db.settings import Settings

_LITTLE_MEMORY = 10**9
_TIMEOUT_S = 60.0


def look_at_device(settings: Settings) -> Iterator[Finding]:
    """The processor and its memory always; the GPUs that BITBUDGET_DEVICE means, where it means some."""
    yield from _look_at_host()
    try:
        facts = ask_worker(settings)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        why = f"the worker's room cannot be asked ({type(error).__name__})"
        yield warn("device", why, "pip install -e '.[worker]'")
        return
    yield from judge_gpus(settings.device, facts)


def ask_worker(settings: Settings) -> dict[str, Any]:
    """What ``python -m worker.device`` finds.

    Raises:
        SubprocessError, OSError, ValueError: it did not run, or said no JSON.
    """
    argv = [sys.executable, "-m", "worker.device", settings.device]
    done = subprocess.run(
        argv, env=environment(settings), capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judge_gpus(device: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """What the worker found of the GPUs."""
    if facts["trouble"]:
        yield fail("device", facts["trouble"], "set BITBUDGET_DEVICE to a device that is here, or to cpu")
        return
    others = [gpu for gpu in facts["gpus"] if gpu["index"] not in facts["matching"]]
    if device == "cpu":
        there = f"; there is also {', '.join(gpu['name'] for gpu in others)}" if others else ""
        yield ok("device", f"cpu{there}")
        return
    for gpu in facts["gpus"]:
        if gpu["index"] not in facts["matching"]:
            continue
        detail = f"cuda:{gpu['index']} = {gpu['name']} ({gpu['uuid']})"
        if gpu["memory_total"]:
            detail += f", {nbytes(gpu['memory_used'])} of {nbytes(gpu['memory_total'])} in use"
        if gpu["holders"]:
            yield warn(
                "device",
                f"{detail}, by {', '.join(gpu['holders'])}",
                "a worker of this stack is fine; end others, or choose another GPU by its UUID",
            )
        else:
            yield ok("device", detail)


def _look_at_host() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{cores} cores, {f'OMP_NUM_THREADS={threads}' if threads else 'threads as many'}"
    if threads.isdigit() and int(threads) > cores:
        yield warn("processor", detail, f"threads beyond the cores wait for each other: OMP_NUM_THREADS={cores}")
    else:
        yield ok("processor", detail)
    memory = memory_facts()
    if memory:
        free, total = memory
        detail = f"{nbytes(free)} of {nbytes(total)} free"
        if free < _LITTLE_MEMORY:
            yield warn("memory", detail, "end other programs: a job that runs out of memory is killed")
        else:
            yield ok("memory", detail)


def memory_facts(path: Path = Path("/proc/meminfo")) -> tuple[int, int] | None:
    """Bytes available and in all; None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024, int(lines["MemTotal"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
