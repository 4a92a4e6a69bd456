"""How long POST /api/v1/allocations takes on a large study, and where the time goes.

    python -m benchmarks.allocate_endpoint [--url sqlite:///… or postgresql+psycopg://…] [--rounds 7] [--write]

80 layers of Llama-2-70B's shapes (560 matrices) × 27 configs, 15,120 measured cells, on an empty database: SQLite in a
temporary folder unless ``--url`` names another.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from sqlalchemy import insert

from compress_core import NUMERICS_VERSION
from compress_core.config import CompressionConfig
from compress_core.matrix import PROJECTIONS
from compress_core.nbytes import predicted_nbytes
from results_db import Database
from results_db.clock import utc_now
from results_db.params import AllocateParams, BudgetSpec
from results_db.settings import Settings
from results_db.tables import (
    Artefact,
    Attempt,
    Calibration,
    Job,
    Measurement,
    Model,
    SensitivityEstimate,
    Sweep,
)
from server.allocations.service import compute_allocation, describe_allocation, prepare, save_allocation
from server.app import create_app
from server.kit.answers import to_json

OUT = Path("benchmarks/results/allocate-endpoint-cpu.md")
LAYERS = 80
#: (out, in) of a layer of Llama-2-70B, in the order of PROJECTIONS
SHAPES = (
    (8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672),
)  # fmt: skip
CONFIGS = tuple(
    CompressionConfig(b_q=b, rank=r, factor_bits=f)
    for b in (2, 3, 4)
    for r in (0, 32, 64, 128, 256)
    for f in ((4, 16) if r else (4,))
)
UNIFORM = CompressionConfig(b_q=3, rank=64)
#: a pin, a megabyte, and the best allocation that differs
WHAT_IF: dict[str, Any] = {
    "budget": {"uniform": UNIFORM.to_dict()},
    "pins": [{"matrix": "7.down", "config": CONFIGS[0].to_dict()}],
}

#: wall and CPU seconds of one round
Times = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", help="an empty database; default: a SQLite file in a temporary folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"record the table in {OUT}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.url or f"sqlite:///{folder}/bitbudget.db"
        app = create_app(Settings(database_url=url), run_loop=False, page=False)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            ids = fill(app.state.database)
            found = {"POST /allocations": timed(lambda: post(client, ids), args.rounds)}
            found |= measure_parts(app.state.database, ids, args.rounds)
            found |= {
                "POST /allocations/frontier": timed(lambda: ask(client, ids, "frontier", {}), args.rounds),
                "POST /allocations/what-if": timed(lambda: ask(client, ids, "what-if", WHAT_IF), args.rounds),
            }
    text = page(url.split(":", 1)[0], found, args.rounds)
    print(text)
    if args.write:
        OUT.write_text(text)


def fill(database: Database) -> dict[str, str]:
    """A model with every cell measured and every sensitivity known."""
    rng = np.random.default_rng(0)
    matrices = [
        {"layer_idx": layer, "projection": projection, "expert_idx": -1}
        | {"out_features": out, "in_features": in_, "nbytes": 2 * out * in_}
        for layer in range(LAYERS)
        for projection, (out, in_) in zip(PROJECTIONS, SHAPES, strict=True)
    ]
    stamp = {"numerics_version": NUMERICS_VERSION, "device_kind": "cpu"}
    ids = {"model_id": "model_1", "calibration_id": "cal_1"}
    with database.write() as session:
        session.add(
            Model(
                id="model_1",
                name="70b",
                source="x",
                fingerprint="f",
                local_path="/x",
                n_layers=LAYERS,
                matrices=matrices,
                fixed_bytes=1,
            )
        )
        session.add(Job(id="job_1", kind="sweep", state="succeeded", params={}))
        session.flush()
        session.add(Artefact(id="art_1", kind="calibration", uri="x", nbytes=1))
        session.add(Attempt(id="att_1", job_id="job_1", number=1, state="succeeded"))
        session.flush()
        text: dict[str, Any] = {"text": {}, "token_hash": "t", "seconds": 1.0}
        session.add(
            Calibration(
                id="cal_1", model_id="model_1", artefact_id="art_1", content_hash="c", n_samples=1, sample_length=8,
                n_tokens=8, seed=0, **text, **stamp,
            )
        )  # fmt: skip
        session.flush()
        session.add(Sweep(id="swp_1", **ids, job_id="job_1", configs=[], config_hashes=[], clamped=[], n_cells=15120))
        session.flush()
        cells, estimates = [], []
        shared = ids | stamp | {"created_at": utc_now()}
        for matrix in matrices:
            spot = {name: matrix[name] for name in ("layer_idx", "projection", "expert_idx")}
            shape = (matrix["out_features"], matrix["in_features"])
            scale, slope = np.exp(1.2 * rng.normal()), 2 + 0.2 * rng.normal()
            for config in CONFIGS:
                captured = 0.4 * np.log1p(config.rank) / np.log1p(256)
                error = float(scale * 2 ** (-slope * config.b_q) * (1 - captured) * np.exp(0.02 * rng.normal()))
                nbytes = predicted_nbytes(config, *shape)
                cells.append(
                    shared | spot | {
                        "sweep_id": "swp_1", "attempt_id": "att_1", "out_features": shape[0], "in_features": shape[1],
                        "config_hash": config.config_hash, "config": config.to_dict(), "b_q": config.b_q,
                        "rank": config.rank, "factor_bits_l": config.factor_bits_l,
                        "factor_bits_r": config.factor_bits_r, "codebook": config.codebook, "states": config.states,
                        "seed": 0, "raw_mse": error, "normalized_mse": error, "calibration_weighted_error": error,
                        "nbytes": nbytes, "bits_per_weight": 8 * nbytes / shape[0] / shape[1], "seconds": 1.0,
                    }
                )  # fmt: skip
            value = float(np.exp(rng.normal()))
            for kind in ("all", "rank0", "low_rank"):
                estimates.append(
                    shared | spot | {
                        "job_id": "job_1", "method": "kl_anchor", "metric": "calibration_weighted_error",
                        "incumbent_hash": "", "applies_to": kind, "token_hash": "t", "value": value, "log_se": 0.1,
                        "low": value / 1.2, "high": value * 1.2, "raw": value, "raw_log_se": 0.1, "own_weight": 1.0,
                        "n_anchors": 2, "n_floored": 0,
                    }
                )  # fmt: skip
        session.execute(insert(Measurement), cells)
        session.execute(insert(SensitivityEstimate), estimates)
    return ids


def post(client: TestClient, ids: dict[str, str]) -> None:
    body = ids | {"name": "optimal", "budget": {"uniform": UNIFORM.to_dict()}}
    answer = client.post("/api/v1/allocations", json=body)
    assert answer.status_code == 201, answer.text
    assert len(answer.json()["items"]) == LAYERS * len(PROJECTIONS)


def ask(client: TestClient, ids: dict[str, str], what: str, question: dict[str, Any]) -> None:
    answer = client.post(f"/api/v1/allocations/{what}", json=ids | question)
    assert answer.status_code == 200, answer.text


def timed(call: Callable[[], Any], rounds: int) -> Times:
    """Each round after one that warms up."""
    call()
    found = []
    for _ in range(rounds):
        began = now()
        call()
        found.append(since(began))
    return found


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = now()
    return wall - began[0], cpu - began[1]


def measure_parts(database: Database, ids: dict[str, str], rounds: int) -> dict[str, Times]:
    """The same steps that the endpoint takes, one by one."""
    params = AllocateParams(**ids, name="optimal", budget=BudgetSpec(uniform=UNIFORM.to_dict()))
    parts: dict[str, Times] = {
        f"· {name}": []
        for name in ("SQL: cells and sensitivities", "table", "solve, regrets, rivals", "write", "answer")
    }
    for _ in range(rounds):
        steps = []
        with database.read() as session:
            began = now()
            model = session.get_one(Model, ids["model_id"])
            chooser, _, _ = prepare(session, model, params, ids["calibration_id"])
            steps.append(since(began))
            began = now()
            assert chooser.problem.nbytes.shape == (LAYERS * len(PROJECTIONS), len(CONFIGS))
            steps.append(since(began))
            began = now()
            chooser.choose()
            steps.append(since(began))
            draft = compute_allocation(session, params)
        with database.write() as session:
            began = now()
            row = save_allocation(session, draft)[0]
            steps.append(since(began))
            began = now()
            to_json(describe_allocation(session, row))
            steps.append(since(began))
        for found, seconds in zip(parts.values(), steps, strict=True):
            found.append(seconds)
    return parts


def page(backend: str, found: dict[str, Times], rounds: int) -> str:
    def ms(values: list[float]) -> str:
        return f"{1e3 * statistics.median(values):.0f} ({1e3 * min(values):.0f} – {1e3 * max(values):.0f})"

    def row(name: str, times: Times) -> str:
        return f"| {name} | {ms([cpu for _, cpu in times])} | {ms([wall for wall, _ in times])} |"

    lines = [
        "# Allocating over HTTP at 560 × 27",
        "",
        f"{date.today():%Y-%m-%d}; `python -m benchmarks.allocate_endpoint --write`; {backend}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores shared with other work (load {os.getloadavg()[0]:.0f}): "
        "the CPU time is what the work takes, the wall time what it took beside the others.",
        "",
        f"{len(CONFIGS) * LAYERS * len(PROJECTIONS):,} measured cells, three sensitivities a matrix; kind optimal at "
        f"the budget of {UNIFORM}; what-if: a pin, a megabyte more, and the best allocation that differs. ms, median "
        f"of {rounds} rounds (range).",
        "",
        "| step | CPU ms | wall ms |",
        "|---|---|---|",
        *(row(name, times) for name, times in found.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
