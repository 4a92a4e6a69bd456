"""Growing up by two URLs: the stack on a database and a Redis of one's own, and a second worker that joins half-way.

The recipe is the guide's: `bitbudget up`, `bitbudget submit`, `python -m worker`. `make faults` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from cli.stack.plan import ROOT
from cli.stack.record import StackRecord, running_stack
from results_db import Database
from results_db.tables import Attempt, Measurement, Worker

PATIENCE_S = 180.0
#: so many that a layer takes about a second: the first one is not over before the queue is paused
CONFIGS = [{"b_q": b_q, "rank": rank} for b_q in (2, 3, 4) for rank in range(1, 17)]
N_CELLS = 4 * 7 * len(CONFIGS)  # layers, projections, configs

#: three processes that load torch or the server, twice: not for every `make test`
pytestmark = pytest.mark.faults


@dataclass
class Site:
    """One folder, two URLs, and the processes that were started there."""

    folder: Path
    env: dict[str, str]
    processes: list[subprocess.Popen[bytes]]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def bitbudget(self, *words: str) -> Any:
        """What a command answers with --json."""
        command = [sys.executable, "-m", "cli", *words, "--json"]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def until(self, done: Callable[[], Any]) -> Any:
        """What ``done`` returns once it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := done()):
            assert time.monotonic() < deadline, (self.folder / "log.txt").read_text()[-3000:]
            assert all(process.poll() is None for process in self.processes), (self.folder / "log.txt").read_text()
            time.sleep(0.05)
        return found


@pytest.fixture
def site(database_url: str, redis_url: str, deep_model: Path, text_path: Path, tmp_path: Path) -> Iterator[Site]:
    site = Site(
        tmp_path,
        {
            **os.environ,
            "BITBUDGET_DATABASE_URL": database_url,
            "BITBUDGET_REDIS_URL": redis_url,
            "BITBUDGET_MODEL_ROOTS": f"{deep_model.parent}{os.pathsep}{text_path.parent}",
            "BITBUDGET_VAR_DIR": str(tmp_path / "var"),
            "BITBUDGET_PORT": "0",
            "BITBUDGET_HEARTBEAT_S": "0.5",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        [],
    )
    yield site
    for process in reversed(site.processes):
        process.terminate()
    for process in site.processes:
        process.wait(90)


def test_a_second_worker_joins_a_sweep_by_two_urls(
    site: Site, database: Database, deep_model: Path, text_path: Path
) -> None:
    site.start("cli", "up")
    record: StackRecord = site.until(lambda: _ready(site.folder / "var"))
    # the Redis is the user's own: none is started
    assert set(record.programs) == {"server", "worker"}
    queue = f"{record.url}/api/v1/queue"
    calibrate = site.bitbudget(
        "submit", "calibrate", f"model={deep_model}", "text.kind=file", f"text.path={text_path}",
        "windows.length=32", "windows.count=2", "--wait",
    )  # fmt: skip
    calibration = calibrate["result"]["calibration_id"]
    # paused before it is submitted: a command takes longer to end than a layer
    pause = {"reason": "a second worker comes"}
    assert httpx.post(f"{queue}/pause", json=pause).status_code == 200
    sweep = site.bitbudget(
        "submit", "sweep", f"model={deep_model}", f"calibration_id={calibration}", f"configs={json.dumps(CONFIGS)}"
    )["id"]
    assert httpx.post(f"{queue}/resume").status_code == 200

    # under way: no other layer is handed out until the second worker is there
    site.until(lambda: len(_measured(database)) >= 1)
    assert httpx.post(f"{queue}/pause", json=pause).status_code == 200
    second = site.start("worker", "--name", "second")
    site.until(lambda: "second" in _workers(database).values())
    assert httpx.post(f"{queue}/resume").status_code == 200

    assert site.bitbudget("wait", sweep, "--timeout", str(PATIENCE_S))["state"] == "succeeded"
    cells = _measured(database)
    # each cell once, whoever measured it; the unique key would refuse a second one
    assert len(cells) == len(set(cells)) == N_CELLS
    workers = _workers(database)
    shares = Counter(workers[worker] for worker in _who_ran(database))
    assert len(shares) == 2, shares
    assert shares["second"] >= 1
    second.terminate()
    assert second.wait(90) == 0
    site.processes.remove(second)


def _ready(var_dir: Path) -> StackRecord | None:
    record = running_stack(var_dir)
    return record if record is not None and record.ready else None


def _measured(database: Database) -> list[tuple[Any, ...]]:
    """The key of every cell."""
    keys = (Measurement.layer_idx, Measurement.projection, Measurement.config_hash, Measurement.calibration_id)
    with database.read() as session:
        return [tuple(row) for row in session.execute(select(*keys))]


def _workers(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {row.id: row.name for row in session.execute(select(Worker.id, Worker.name))}


def _who_ran(database: Database) -> list[str]:
    """The worker of each attempt; every one succeeded at once."""
    with database.read() as session:
        attempts = session.scalars(select(Attempt)).all()
    assert {attempt.state for attempt in attempts} == {"succeeded"}
    assert {attempt.number for attempt in attempts} == {1}
    return [str(attempt.worker_id) for attempt in attempts]
