"""The application on real databases, a tiny real checkpoint, and a worker whose numbers come from formulas.

The simulated worker claims attempts and records rows exactly as the real one does, but computes nothing: its errors,
sensitivities and losses are formulas, so that what the server makes of them can be checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from sqlalchemy import insert, make_url, select

from compress_core.config import CompressionConfig
from compress_core.nbytes import predicted_nbytes
from compress_core.version import NUMERICS_VERSION
from results_db import Database
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.params import MatrixFilter
from results_db.queue.lease import Claim, claim_attempt, fail_attempt, finish_attempt
from results_db.recording import (
    record_calibration,
    record_compression,
    record_estimates,
    record_evaluation,
    record_sensitivity,
    record_sweep,
    record_validation,
    recorded_cells,
)
from results_db.retire import forced_cells, record_again
from results_db.settings import Settings
from results_db.states import AttemptState
from results_db.tables import Allocation, AllocationItem, Attempt, Compression, Job, Measurement, Model, Worker
from server.app import create_app

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, VOCAB = 32, 4, 2, 48, 3, 64


def write_checkpoint(folder: Path, *, layers: int = LAYERS, seed: int = 0) -> Path:
    """A Qwen2-shaped checkpoint with random weights."""
    rng = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN)}
    mlp = {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
    tensors = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        tensors |= {f"{prefix}.self_attn.{name}_proj.weight": shape for name, shape in shapes.items()}
        tensors |= {f"{prefix}.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
        tensors |= {f"{prefix}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    save_file(arrays, str(folder / "model.safetensors"))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def database_url(database_url: str, request: pytest.FixtureRequest) -> str:
    """URL of a fresh database; tests of ``measured_model`` begin with a copy of one that was filled once."""
    if "measured_model" in request.fixturenames:
        request.getfixturevalue("measured").copy_to(database_url)
    return database_url


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if "measured_model" in request.fixturenames:
        return request.getfixturevalue("measured").checkpoint
    return write_checkpoint(tmp_path / "models" / "tiny")


@pytest.fixture
def settings(database_url: str, checkpoint: Path, tmp_path: Path) -> Settings:
    """Redis is nowhere: tests that want one replace the URL."""
    (tmp_path / "models").mkdir(exist_ok=True)
    return make_settings(database_url, tmp_path, *{tmp_path / "models", checkpoint.parent})


def make_settings(database_url: str, folder: Path, *roots: Path) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=f"unix://{folder}/none.sock",
        var_dir=folder / "var",
        model_roots=roots,
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application; its advance loop is turned by hand."""
    return create_app(settings, run_loop=False, page=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def model(client: TestClient, checkpoint: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The tiny model, registered."""
    if "measured_model" in request.fixturenames:
        return dict(client.get("/api/v1/models").json()["items"][0])
    return register(client, checkpoint)


def register(client: TestClient, checkpoint: Path) -> dict[str, Any]:
    answer = client.post("/api/v1/models", json={"source": str(checkpoint)})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def error_of(config: CompressionConfig, layer: int) -> float:
    """The plan's form, with a level per layer; round-to-nearest is worse."""
    level = 0.5 + 0.5 * layer
    worse = 3.0 if config.codebook == "rtn" else 1.0
    return worse * level * (0.9 * 2.0 ** (-1.8 * config.b_q) + 0.005 * (config.rank + 1) ** -0.7)


def sensitivity_of(layer: int) -> float:
    """Nats per unit of error: the last layers matter most."""
    return 0.05 * 6.0**layer


@dataclass
class SimulatedWorker:
    """Claims queued attempts in order and answers each by formula."""

    database: Database
    n_windows: int = 100
    #: kind or step → error to fail with
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: error of a (config, layer)
    error_of: Callable[[CompressionConfig, int], float] = error_of
    sensitivity_of: Callable[[int], float] = sensitivity_of
    #: what a validation says of its predictions
    calibrated: bool = True
    #: what an allocation loses on the select split, by its name and Σ a·ε
    validated_excess: Callable[[str, float], float] = lambda name, excess: excess
    worker_id: str = field(default_factory=lambda: new_id("wrk"))

    def __post_init__(self) -> None:
        with self.database.write() as session:
            session.add(
                Worker(
                    id=self.worker_id,
                    name=self.worker_id,
                    hostname="test",
                    pid=1,
                    device="cpu",
                    device_kind="cpu",
                    state="up",
                    heartbeat_at=utc_now(),
                )
            )

    def run_all(self) -> int:
        """Run every queued attempt; how many there were."""
        with self.database.read() as session:
            queued = select(Attempt.id).where(Attempt.state == AttemptState.QUEUED.value).order_by(Attempt.id)
            ids = list(session.scalars(queued))
        for attempt_id in ids:
            self.run(attempt_id)
        return len(ids)

    def run(self, attempt_id: str) -> None:
        with self.database.write() as session:
            claim = claim_attempt(session, attempt_id, worker_id=self.worker_id, lease_s=60)
        assert claim is not None
        with self.database.read() as session:
            step = session.get_one(Job, claim.job_id).step
        if error := self.failures.get(claim.kind) or self.failures.get(str(step)):
            with self.database.write() as session:
                fail_attempt(session, claim, error)
            return
        with self.database.write() as session:
            result = getattr(self, f"_{claim.kind}")(session, claim, claim.params)
            finish_attempt(session, claim, result)

    def _calibrate(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        key = _hash(params)
        id_ = record_calibration(
            session,
            claim,
            uri="calibration.safetensors",
            nbytes=1,
            model_id=params["model_id"],
            content_hash=key,
            n_samples=params["windows"]["count"],
            sample_length=params["windows"]["length"],
            n_tokens=1024,
            seed=0,
            token_hash=key,
            text=params["text"],
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
            seconds=0.0,
        )
        return {"calibration_id": id_, "reused": False}

    def _sensitivity(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        incumbent = params.get("incumbent_allocation_id")
        method = "reanchored" if incumbent else "kl_anchor"
        for matrix in session.get_one(Model, params["model_id"]).matrices:
            for fields in params["anchors"][:1] if incumbent else params["anchors"]:
                config = _clamped(fields, matrix)
                error = self.error_of(config, matrix["layer_idx"])
                kl = self.sensitivity_of(matrix["layer_idx"]) * error
                hash_, anchor = config.config_hash, config.to_dict()
                if incumbent:
                    hash_ = session.get_one(Allocation, incumbent).content_hash
                    anchor = {"allocation_id": incumbent}
                record_sensitivity(
                    session,
                    claim,
                    **_matrix(matrix),
                    model_id=params["model_id"],
                    calibration_id=params["calibration_id"],
                    method=method,
                    anchor_config_hash=hash_,
                    anchor_config=anchor,
                    anchor_error=error,
                    kl=kl,
                    kl_se=kl / 50,
                    sensitivity=kl / error,
                    n_sequences=16,
                    n_tokens=4096,
                    token_hash="tokens",
                    text=params["text"],
                    numerics_version=NUMERICS_VERSION,
                    device_kind="cpu",
                    seconds=0.0,
                )
        if incumbent:
            self._conclude(session, claim, params, session.get_one(Allocation, incumbent).content_hash)
        return {
            "calibration_id": params["calibration_id"],
            "recorded": 1,
            "reused": 0,
            "incumbent_allocation_id": incumbent,
        }

    def _conclude(self, session: Any, claim: Claim, params: dict[str, Any], incumbent_hash: str) -> None:
        def estimate(matrix: dict[str, Any]) -> dict[str, Any]:
            value = self.sensitivity_of(matrix["layer_idx"])
            return _matrix(matrix) | {
                "value": value,
                "log_se": 0.1,
                "low": 0.8 * value,
                "high": 1.2 * value,
                "raw": value,
                "raw_log_se": 0.1,
                "own_weight": 1.0,
                "n_anchors": 1,
                "n_floored": 0,
            }

        record_estimates(
            session,
            claim,
            model_id=params["model_id"],
            calibration_id=params["calibration_id"],
            method="reanchored",
            metric="calibration_weighted_error",
            token_hash="tokens",
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
            incumbent_hash=incumbent_hash,
            estimates=[estimate(matrix) for matrix in session.get_one(Model, params["model_id"]).matrices],
        )

    def _sweep(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        whole = session.get_one(Job, params["part_of"]).params if params.get("part_of") else params
        asked, cells = (self._cells(session, p) for p in (whole, params))
        sweep_id = record_sweep(
            session,
            claim,
            job_id=params.get("part_of"),
            model_id=params["model_id"],
            calibration_id=params["calibration_id"],
            configs=params["configs"],
            config_hashes=sorted({key[-1] for key in asked}),
            clamped=[],
            n_cells=len(asked),
        )
        known = recorded_cells(
            session,
            model_id=params["model_id"],
            calibration_id=params["calibration_id"],
            config_hashes={key[-1] for key in cells},
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
        )
        if params.get("force"):
            known = forced_cells(session, sweep_id)
        rows = []
        for matrix, config in (cell for key, cell in cells.items() if key not in known):
            out, in_ = matrix["out_features"], matrix["in_features"]
            nbytes = predicted_nbytes(config, out, in_)
            rows.append(
                _matrix(matrix)
                | {
                    "model_id": params["model_id"],
                    "calibration_id": params["calibration_id"],
                    "sweep_id": sweep_id,
                    "attempt_id": claim.attempt_id,
                    "created_at": utc_now(),
                    "out_features": out,
                    "in_features": in_,
                    "config_hash": config.config_hash,
                    "config": config.to_dict(),
                    "b_q": config.b_q,
                    "rank": config.rank,
                    "factor_bits_l": config.factor_bits_l,
                    "factor_bits_r": config.factor_bits_r,
                    "codebook": config.codebook,
                    "states": config.states if config.codebook == "trellis" else None,
                    "seed": config.seed,
                    "numerics_version": NUMERICS_VERSION,
                    "device_kind": "cpu",
                    "raw_mse": 0.1,
                    "normalized_mse": 0.1,
                    "calibration_weighted_error": self.error_of(config, matrix["layer_idx"]),
                    "nbytes": nbytes,
                    "bits_per_weight": 8 * nbytes / (out * in_),
                    "seconds": 0.0,
                }
            )
        if params.get("force"):
            for row in rows:
                assert record_again(session, claim, **row)
        elif rows:
            session.execute(insert(Measurement), rows)
        recorded = len(rows)
        return {
            "sweep_id": sweep_id,
            "calibration_id": params["calibration_id"],
            "recorded": recorded,
            "reused": len(cells) - recorded,
            "n_cells": len(cells),
        }

    def _cells(self, session: Any, params: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Any, CompressionConfig]]:
        only = MatrixFilter.model_validate(params.get("matrices") or {})
        cells = {}
        for matrix in session.get_one(Model, params["model_id"]).matrices:
            if not only.passes(matrix["layer_idx"], matrix["projection"]):
                continue
            for fields in params["configs"]:
                config = _clamped(fields, matrix)
                cells[(*_matrix(matrix).values(), config.config_hash)] = (matrix, config)
        return cells

    def _compress(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        allocation = session.get_one(Allocation, params["allocation_id"])
        nbytes = allocation.matrix_bytes + allocation.fixed_bytes
        id_ = record_compression(
            session,
            claim,
            uri=f"{allocation.content_hash}.safetensors",
            nbytes=nbytes,
            model_id=params["model_id"],
            calibration_id=params["calibration_id"],
            allocation_id=allocation.id,
            content_hash=allocation.content_hash,
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
            expected_bytes=nbytes,
            actual_bytes=nbytes,
            seconds=0.0,
        )
        return {"compression_id": id_, "actual_bytes": nbytes, "reused": False}

    def _evaluate(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        """Loss of a window = its own difficulty + Σ a·ε of the model + a little noise of the model's own."""
        excess = self._excess(session, params.get("compression_id"))
        n, tokens = self.n_windows, 256
        difficulty = np.random.default_rng(1).normal(2.0, 0.3, n)
        own = np.random.default_rng(int(_hash([params.get("compression_id"), excess])[:8], 16)).normal(0, 0.002, n)
        nll = (difficulty + excess + own) * tokens
        mean = float(nll.sum() / (n * tokens))
        token_hash = _hash([params["text"], params["split"], params["windows"]])
        id_ = record_evaluation(
            session,
            claim,
            items=[(float(x), tokens) for x in nll],
            model_id=params["model_id"],
            compression_id=params.get("compression_id"),
            content_hash=_hash([params["model_id"], params.get("compression_id"), token_hash]),
            task="perplexity",
            dataset=params["text"]["kind"],
            split=params["split"],
            metric="ppl",
            value=math.exp(mean),
            ci_low=math.exp(mean - 0.05),
            ci_high=math.exp(mean + 0.05),
            nll=mean,
            bits_per_byte=None,
            n_items=n,
            n_tokens=n * tokens,
            token_hash=token_hash,
            text=params["text"],
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
            seconds=0.0,
        )
        return {"evaluation_id": id_, "value": math.exp(mean), "reused": False}

    def _validate(self, session: Any, claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
        """Joint KL is Σ a·ε; the winner has the least of it."""
        found = [session.get_one(Allocation, id_) for id_ in params["allocation_ids"]]
        kls = [self.validated_excess(a.name, self._excess_of(session, a.id)) for a in found]
        n = self.n_windows
        difficulty = np.random.default_rng(2).normal(2.0, 0.3, n)

        def item(allocation: Allocation | None, kl: float) -> dict[str, Any]:
            own = np.random.default_rng(int(_hash(kl)[:8], 16)).normal(0, 0.002, n)
            nll = (difficulty + kl + own) * 256
            mean = float(nll.mean()) / 256
            return {
                "allocation_id": allocation and allocation.id,
                "name": allocation.name if allocation else "original",
                "kind": allocation.kind if allocation else "original",
                "matrix_bytes": allocation.matrix_bytes if allocation else 10**6,
                "predicted_kl": allocation.predicted_kl if allocation else None,
                "kl": kl,
                "kl_se": 0.01 * kl,
                "nll": mean,
                "ppl": math.exp(mean),
                "windows": [(kl, float(x), 256) for x in nll],
            }

        winner = found[int(np.argmin(kls))]
        validation_id = record_validation(
            session,
            claim,
            items=[item(None, 0.0), *(item(*pair) for pair in zip(found, kls, strict=True))],
            model_id=params["model_id"],
            calibration_id=params["calibration_id"],
            study_id=session.get_one(Job, claim.job_id).study_id,
            name=params["name"],
            dataset=params["text"]["kind"],
            split=params["split"],
            token_hash=_hash([params["text"], params["split"], params["windows"]]),
            n_windows=n,
            n_tokens=n * 256,
            text=params["text"],
            n_allocations=len(found),
            spearman=0.97,
            spearman_low=0.93,
            spearman_high=0.99,
            log_slope=1.0,
            log_slope_low=0.9,
            log_slope_high=1.1,
            kappa=1.2,
            residual_sd=0.05,
            calibrated=self.calibrated,
            winner_allocation_id=winner.id,
            details={},
            numerics_version=NUMERICS_VERSION,
            device_kind="cpu",
            seconds=0.0,
        )
        return {
            "validation_id": validation_id,
            "winner_allocation_id": winner.id,
            "calibrated": self.calibrated,
            "reanchor": params.get("reanchor", False) and not self.calibrated,
        }

    def _excess(self, session: Any, compression_id: str | None) -> float:
        if compression_id is None:
            return 0.0
        return self._excess_of(session, session.get_one(Compression, compression_id).allocation_id)

    def _excess_of(self, session: Any, allocation_id: str) -> float:
        items = session.scalars(select(AllocationItem).where(AllocationItem.allocation_id == allocation_id))
        return sum(
            self.sensitivity_of(i.layer_idx) * self.error_of(CompressionConfig.from_dict(i.config), i.layer_idx)
            for i in items
        )


def _matrix(matrix: dict[str, Any]) -> dict[str, Any]:
    return {name: matrix[name] for name in ("layer_idx", "projection", "expert_idx")}


def _clamped(fields: dict[str, Any], matrix: dict[str, Any]) -> CompressionConfig:
    return CompressionConfig.from_dict(fields).clamped(matrix["out_features"], matrix["in_features"])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@pytest.fixture
def make_worker(app: FastAPI, client: TestClient) -> Callable[..., SimulatedWorker]:
    """A simulated worker; the client's start migrated the database."""

    def make(**options: Any) -> SimulatedWorker:
        return SimulatedWorker(app.state.database, **options)

    return make


@pytest.fixture
def run_to_end(app: FastAPI, make_worker: Callable[..., SimulatedWorker]) -> Callable[..., None]:
    """Turn the loop and let the worker run until neither has anything to do."""
    return lambda worker=None: turn_to_end(app, worker or make_worker())


def turn_to_end(app: FastAPI, worker: SimulatedWorker) -> None:
    for _ in range(500):
        moved = app.state.loop.turn()
        assert app.state.loop.last_error is None
        if not worker.run_all() and not moved:
            return
    raise AssertionError("still not idle after 500 turns")


@pytest.fixture
def study_config(checkpoint: Path) -> dict[str, Any]:
    """A small study with every phase."""
    return {
        "name": "small",
        "model": {"source": str(checkpoint)},
        "calibration": {"samples": 8, "length": 64},
        "sensitivity": {"samples": 8, "length": 64},
        "grid": {"codebook": "e8", "b_q": [2, 3, 4], "rank": [0, 4, 12]},
        "phase0": {
            "uniform": {"b_q": 2, "rank": 8},
            "high": {"b_q": 3, "rank": 16},
            "low": {"b_q": 2, "rank": 0},
        },
        "budgets": [{"uniform": {"b_q": 3, "rank": 4}}],
        "validation": {"uniforms": 3, "random": 4, "windows": 8, "length": 64},
        "evaluation": {"length": 64},
        "on_no_go": "continue",
    }


class Measured:
    """Databases with a measured model, one of each kind, filled when first asked for and copied from then on."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request = request
        self.checkpoint = write_checkpoint(folder / "models" / "tiny")
        self._filled: set[str] = set()

    def copy_to(self, database_url: str) -> None:
        """Replace a database that nobody has opened yet."""
        url = make_url(database_url)
        if url.get_backend_name() == "sqlite":
            template = self.folder / "measured.db"
            if "sqlite" not in self._filled:
                shutil.copy(self.request.getfixturevalue("sqlite_template"), template)
                self._fill("sqlite", f"sqlite:///{template}")
            shutil.copy(template, str(url.database))
            return
        run = self.request.getfixturevalue("postgres_run")
        if "postgresql" not in self._filled:
            run(f"CREATE DATABASE measured TEMPLATE {self.request.getfixturevalue('postgres_template')}")
            self._fill("postgresql", self.request.getfixturevalue("postgres_uri")("measured"))
        run(f"DROP DATABASE {url.database} WITH (FORCE)")
        run(f"CREATE DATABASE {url.database} TEMPLATE measured")

    def _fill(self, kind: str, url: str) -> None:
        app = create_app(make_settings(url, self.folder, self.checkpoint.parent), run_loop=False, page=False)
        with TestClient(app, base_url="http://localhost") as client:
            measure(client, register(client, self.checkpoint)["id"], partial(turn_to_end, app))
            if kind == "sqlite":
                with app.state.database.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self._filled.add(kind)


def measure(client: TestClient, model_id: str, run: Callable[[SimulatedWorker], None]) -> None:
    """A calibration, sensitivities and a sweep of a model."""
    worker = SimulatedWorker(client.app.state.database)  # type: ignore[attr-defined]
    ask = {"model_id": model_id}
    configs = [{"b_q": b, "rank": r} for b in (2, 3, 4) for r in (0, 4, 12)]
    assert client.post("/api/v1/calibrations", json=ask).status_code == 202
    run(worker)
    assert client.post("/api/v1/sensitivities", json=ask | {"anchors": [configs[0], configs[-1]]}).status_code == 202
    configs += [{"b_q": b, "codebook": "rtn"} for b in (2, 3, 4)]
    assert client.post("/api/v1/sweeps", json=ask | {"configs": configs}).status_code == 202
    run(worker)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Measured:
    return Measured(tmp_path_factory.mktemp("measured"), request)


@pytest.fixture
def measured_model(client: TestClient) -> dict[str, Any]:
    """The tiny model with a calibration, sensitivities and a sweep: {model_id, calibration_id}."""
    (calibration,) = client.get("/api/v1/calibrations").json()["items"]
    return {"model_id": calibration["model_id"], "calibration_id": calibration["id"]}
