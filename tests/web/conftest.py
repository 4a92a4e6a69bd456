"""A database with studies in it, the page's app over it, and a browser.

The numbers come from formulas: they stand in for a measured study so that the page has something to show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.version import NUMERICS_VERSION
from results_db import Database
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.queue.events import record_event
from results_db.settings import Settings
from results_db.tables import (
    Allocation,
    AllocationItem,
    Artefact,
    Attempt,
    Calibration,
    Compression,
    Evaluation,
    Fit,
    Gate,
    Job,
    LayerFidelityRow,
    Measurement,
    Model,
    SensitivityAnchor,
    SensitivityEstimate,
    Study,
    Sweep,
    Validation,
    ValidationItem,
    Worker,
)
from server.app import create_app

PROJECTIONS = {"q": 256, "k": 128, "v": 128, "o": 256, "gate": 704, "up": 704, "down": 256}
CONFIGS: list[dict[str, Any]] = [
    {"b_q": b, "rank": r, "factor_bits": 4, "codebook": "e8", "seed": 0, "iterations": 5}
    for b in (2, 3, 4)
    for r in (0, 8, 32)
] + [{"b_q": b, "rank": 0, "factor_bits": 4, "codebook": "rtn", "seed": 0, "iterations": 5} for b in (2, 3, 4)]
_BY_PHASE = {
    0: "calibrate sensitivity gate:0:sensitivity",
    1: "sweep gate:1",
    2: "fit gate:2",
    3: "allocate:optimal allocate:uniform validate:choice gate:3",
    4: "compress:optimal compress:uniform evaluate:original:std evaluate:optimal:std evaluate:uniform:std gate:4",
}
#: (step, phase); a step's kind is its first word
STEPS = [(step, phase) for phase, steps in _BY_PHASE.items() for step in steps.split()]
PPL = {"original": 9.62, "optimal": 12.31, "uniform": 13.04}


def _error(layer: int, projection: str, config: dict[str, Any]) -> float:
    scale = 0.6 + 0.25 * layer + 0.1 * len(projection)
    factor = 1.0 if config["codebook"] == "e8" else 2.2
    return scale * factor * (1.4 * 2 ** (-1.9 * config["b_q"]) + 0.004 * (config["rank"] + 1) ** -0.4)


def _hash(config: dict[str, Any]) -> str:
    return CompressionConfig.from_dict(config).config_hash


def _nbytes(n_weights: int, config: dict[str, Any]) -> int:
    return n_weights * config["b_q"] // 8 + config["rank"] * 400


@dataclass
class Filler:
    """Writes studies into a database."""

    database: Database
    n_layers: int = 2
    jobs: dict[str, str] = field(default_factory=dict)

    def model(self, session: Session, name: str = "demo-5m") -> Model:
        matrices = [
            {
                "layer_idx": i,
                "projection": p,
                "expert_idx": -1,
                "out_features": out,
                "in_features": 704 if p == "down" else 256,
                "nbytes": 2 * out * (704 if p == "down" else 256),
            }
            for i in range(self.n_layers)
            for p, out in PROJECTIONS.items()
        ]
        model = Model(
            id=new_id("mod"),
            name=name,
            source="demo/model",
            local_path="/models/demo",
            fingerprint=new_id("fp"),
            architecture="Qwen2ForCausalLM",
            n_layers=self.n_layers,
            matrices=matrices,
            fixed_bytes=2_140_000,
            original_bytes=10_860_000,
            config={},
        )
        session.add(model)
        session.flush()
        return model

    def worker(self, session: Session) -> Worker:
        worker = Worker(
            id=new_id("wrk"), name=new_id("worker"), hostname="host", pid=1, device="cpu", device_kind="cpu"
        )
        worker.state, worker.heartbeat_at, worker.versions = "up", utc_now(), {}
        session.add(worker)
        session.flush()
        return worker

    def study(self, name: str, *, upto: str | None = None, sweep_share: float = 0.4) -> str:
        """A study that has ended, or that runs at the step ``upto``; its id. ``jobs`` has the ids by step."""
        with self.database.write() as session:
            model, worker = self.model(session), self.worker(session)
            study = Study(id=new_id("std"), name=name, model_id=model.id, state="running", on_no_go="stop")
            study.config = {"name": name, "grid": {"b_q": [2, 3, 4], "rank": [0, 8, 32]}}
            session.add(study)
            session.flush()
            start = utc_now() - timedelta(minutes=9)
            names = [step for step, _ in STEPS]
            now = names.index(upto) if upto else len(names)
            for position, (step, phase) in enumerate(STEPS):
                kind = step.split(":")[0]
                state = "succeeded" if position < now else "running" if position == now else "waiting"
                job = Job(id=new_id("job"), kind=kind, state=state, study_id=study.id, step=step, phase=phase)
                job.position, job.params = position, {"model_id": model.id}
                if state != "waiting":
                    job.started_at = start + timedelta(seconds=20 * position)
                if state == "succeeded":
                    job.finished_at = start + timedelta(seconds=20 * position + 17)
                    job.progress = {"done": 1, "total": 1, "message": "", "eta_s": 0.0}
                    job.result = {}
                session.add(job)
                session.flush()
                self.jobs[step] = job.id
                record_event(session, job, "state")
                if state != "waiting":
                    self._fill(session, study, model, worker, job, sweep_share)
            if upto is None:
                study.state, study.finished_at, study.headline = "succeeded", utc_now(), self._headline()
            return study.id

    def split_sweep(self, states: Sequence[str]) -> None:
        """Let the running sweep wait for its layers, which are in these states; ``jobs`` has them by their steps."""
        with self.database.write() as session:
            whole = session.get_one(Job, self.jobs["sweep"])
            whole.state = "waiting"
            ended = sum(state in ("succeeded", "failed") for state in states)
            whole.progress = {"done": 50, "total": 200, "message": f"{ended} of {len(states)} layers", "eta_s": 83.0}
            for layer, state in enumerate(states):
                part = Job(id=new_id("job"), kind="sweep", state=state, study_id=whole.study_id, phase=whole.phase)
                part.position, part.step = whole.position, f"sweep:layer-{layer}"
                part.params = whole.params | {"part_of": whole.id, "matrices": {"layers": [layer]}}
                part.started_at = None if state == "queued" else utc_now()
                part.finished_at = utc_now() if state in ("succeeded", "failed") else None
                part.error = {"message": "weight 2.up holds NaN"} if state == "failed" else None
                session.add(part)
                self.jobs[part.step] = part.id
            session.flush()
            parts = [self.jobs[f"sweep:layer-{layer}"] for layer in range(len(states))]
            whole.depends_on = [self.jobs["sensitivity"], *parts]

    def progress(self, step: str, done: int, total: int, eta_s: float) -> None:
        """What a heartbeat does."""
        with self.database.write() as session:
            job = session.get_one(Job, self.jobs[step])
            job.progress = {"done": done, "total": total, "message": f"cell {done}", "eta_s": eta_s}
            record_event(session, job, "progress", payload=job.progress)

    def measure(self, share: float) -> None:
        """Record the first ``share`` of the running sweep's cells that are not there yet."""
        with self.database.write() as session:
            job = session.get_one(Job, self.jobs["sweep"])
            sweep = session.query(Sweep).filter_by(job_id=job.id).one()
            model = session.get_one(Model, sweep.model_id)
            self._measure(session, model, sweep, self._attempt(session, job, None), share)

    def _fill(self, session: Session, study: Study, model: Model, worker: Worker, job: Job, sweep_share: float) -> None:
        is_over = job.state == "succeeded"
        if job.kind in ("calibrate", "sensitivity", "sweep", "validate", "compress", "evaluate"):
            attempt = self._attempt(session, job, worker)
        calibration_id = self.jobs.get("calibration")
        if job.kind == "calibrate":
            artefact = Artefact(id=new_id("art"), kind="calibration", uri="calibration.safetensors", nbytes=1)
            session.add(artefact)
            session.flush()
            calibration = Calibration(id=new_id("cal"), model_id=model.id, artefact_id=artefact.id)
            calibration.content_hash, calibration.token_hash = new_id("h"), "t"
            calibration.n_samples, calibration.sample_length, calibration.n_tokens, calibration.seed = 64, 256, 16384, 0
            calibration.text, calibration.numerics_version, calibration.device_kind = {"kind": "stdlib"}, 1, "cpu"
            calibration.seconds = 12.0
            session.add(calibration)
            session.flush()
            self.jobs["calibration"], self.jobs["artefact"] = calibration.id, artefact.id
            job.result = {"calibration_id": calibration.id}
        elif job.kind == "sensitivity":
            anchors = [CONFIGS[0], CONFIGS[5]]
            job.params = {"model_id": model.id, "calibration_id": calibration_id, "anchors": anchors}
            job.params |= {"methods": ["kl_anchor", "higgs"], "fidelity": CONFIGS[0]}
            for matrix in model.matrices if is_over else model.matrices[:9]:
                for anchor in anchors:
                    self._sense(session, model, job, attempt, matrix, anchor)
            if is_over:
                self._conclude(session, model, job, attempt)
            job.result = {"calibration_id": calibration_id} if is_over else None
        elif job.kind == "sweep":
            sweep = Sweep(id=new_id("swp"), model_id=model.id, calibration_id=calibration_id, job_id=job.id)
            sweep.configs, sweep.config_hashes = CONFIGS, [_hash(c) for c in CONFIGS]
            sweep.n_cells = len(CONFIGS) * len(model.matrices)
            session.add(sweep)
            session.flush()
            self._measure(session, model, sweep, attempt, 1.0 if is_over else sweep_share)
            if is_over:
                job.result = {"sweep_id": sweep.id, "calibration_id": calibration_id}
            else:
                done = int(sweep_share * sweep.n_cells)
                job.progress = {"done": done, "total": sweep.n_cells, "message": "layer 1, q", "eta_s": 83.0}
        elif job.kind == "fit":
            job.result = {"fit_id": self._fit(session, model, job), "r2": 0.93}
        elif job.kind == "allocate":
            name = str(job.step).split(":")[1]
            job.params = {"model_id": model.id, "calibration_id": calibration_id, "name": name, "menu": CONFIGS[:9]}
            job.params |= {"kind": "best_uniform" if name == "uniform" else name, "budget": {"bits_per_weight": 4}}
            job.result = {"allocation_id": self._allocate(session, model, study, job)}
        elif job.kind == "validate" and is_over:
            job.result = {"validation_id": self._validate(session, model, study, job)}
        elif job.kind == "compress" and is_over:
            job.result = {"compression_id": self._compress(session, model, job)}
        elif job.kind == "evaluate" and is_over:
            job.result = {"evaluation_id": self._evaluate(session, model, job)}
        elif job.kind == "gate" and is_over:
            self._gate(session, study, job)

    def _attempt(self, session: Session, job: Job, worker: Worker | None) -> Attempt:
        n = session.query(Attempt).filter_by(job_id=job.id).count()
        attempt = Attempt(
            id=new_id("att"), job_id=job.id, number=n + 1, state="succeeded" if n or job.finished_at else "running"
        )
        attempt.worker_id = worker.id if worker else None
        attempt.started_at, attempt.finished_at, attempt.peak_rss_bytes = job.started_at, job.finished_at, 812_000_000
        session.add(attempt)
        session.flush()
        return attempt

    def _measure(self, session: Session, model: Model, sweep: Sweep, attempt: Attempt, share: float) -> None:
        cells = [(m, c) for m in model.matrices for c in CONFIGS]
        present = session.query(Measurement).filter_by(sweep_id=sweep.id).count()
        for matrix, config in cells[present : int(share * len(cells))]:
            n_weights = matrix["out_features"] * matrix["in_features"]
            error, nbytes = _error(matrix["layer_idx"], matrix["projection"], config), _nbytes(n_weights, config)
            row = Measurement(**matrix, model_id=model.id, calibration_id=sweep.calibration_id, sweep_id=sweep.id)
            row.attempt_id, row.config_hash, row.config = attempt.id, _hash(config), config
            row.b_q, row.rank, row.codebook, row.seed = config["b_q"], config["rank"], config["codebook"], 0
            row.factor_bits_l, row.factor_bits_r, row.device_kind = 4, 4, "cpu"
            row.numerics_version = NUMERICS_VERSION
            row.raw_mse, row.normalized_mse, row.calibration_weighted_error = error / 50, error * 1.3, error
            row.nbytes, row.bits_per_weight, row.seconds = nbytes, 8 * nbytes / n_weights, 0.1
            session.add(row)

    def _sense(
        self, session: Session, model: Model, job: Job, attempt: Attempt, matrix: dict[str, Any], anchor: dict[str, Any]
    ) -> None:
        key = {name: matrix[name] for name in ("layer_idx", "projection", "expert_idx")}
        error = _error(matrix["layer_idx"], matrix["projection"], anchor)
        nats = (0.4 + 2.5 * math.sin(1 + matrix["layer_idx"] * 1.7) ** 2) * (
            2.2 if matrix["projection"] in "vdown" else 0.7
        )
        row = SensitivityAnchor(**key, model_id=model.id, calibration_id=self.jobs["calibration"], job_id=job.id)
        row.attempt_id, row.method, row.anchor_config_hash, row.anchor_config = (
            attempt.id,
            "kl_anchor",
            _hash(anchor),
            anchor,
        )
        row.anchor_error, row.kl, row.kl_se, row.sensitivity = error, error * nats, error * nats / 12, nats
        row.n_sequences, row.n_tokens, row.token_hash, row.text = 16, 4096, "m", {"kind": "stdlib"}
        row.numerics_version, row.device_kind, row.seconds = 1, "cpu", 0.2
        session.add(row)
        if anchor is CONFIGS[0]:  # noise is no config
            values = row.as_dict() | {"id": None, "method": "higgs", "anchor_config_hash": "noise-0.05"}
            session.add(SensitivityAnchor(**values | {"anchor_config": {"noise": 0.05}}))

    def _conclude(self, session: Session, model: Model, job: Job, attempt: Attempt) -> None:
        """Estimates by two methods, and the fidelity of each layer."""
        shared = {"model_id": model.id, "calibration_id": self.jobs["calibration"], "job_id": job.id}
        shared |= {"token_hash": "m", "numerics_version": NUMERICS_VERSION, "device_kind": "cpu"}
        for method, metric in (("kl_anchor", "calibration_weighted_error"), ("higgs", "normalized_mse")):
            for m in model.matrices:
                key = {name: m[name] for name in ("layer_idx", "projection", "expert_idx")}
                value = 0.5 + m["layer_idx"] + 0.1 * len(m["projection"])
                row = SensitivityEstimate(**key, **shared, method=method, metric=metric, value=value, log_se=0.2)
                row.low, row.high, row.raw, row.raw_log_se = 0.7 * value, 1.4 * value, value, 0.3
                row.own_weight, row.n_anchors, row.n_floored = 0.8, 2, 0
                session.add(row)
        for layer in range(self.n_layers):
            row_of = LayerFidelityRow(**shared, attempt_id=attempt.id, layer_idx=layer, config=CONFIGS[0])
            row_of.config_hash, row_of.text, row_of.n_sequences, row_of.seconds = _hash(CONFIGS[0]), {}, 16, 0.1
            row_of.cosine, row_of.cosine_se, row_of.relative_error, row_of.relative_error_se = 0.98, 0.001, 0.04, 0.002
            session.add(row_of)

    def _validate(self, session: Session, model: Model, study: Study, job: Job) -> str:
        row = Validation(id=new_id("val"), model_id=model.id, calibration_id=self.jobs["calibration"], job_id=job.id)
        row.study_id, row.name, row.dataset, row.split, row.token_hash = study.id, "choice", "stdlib", "select", "s"
        row.n_windows, row.n_tokens, row.text, row.n_allocations, row.seconds = 32, 8192, {}, 12, 9.0
        row.spearman, row.spearman_low, row.spearman_high, row.kappa = 0.96, 0.91, 0.99, 1.1
        row.log_slope, row.log_slope_low, row.log_slope_high, row.residual_sd = 1.05, 0.9, 1.2, 0.06
        row.calibrated, row.numerics_version, row.device_kind = True, NUMERICS_VERSION, "cpu"
        session.add(row)
        session.flush()
        names = [("original", "original"), ("optimal", "optimal"), ("uniform", "best_uniform")]
        names += [(f"random-{i:02d}", "random") for i in range(1, 11)]
        for position, (name, kind) in enumerate(names):
            predicted = 0.05 * position
            item = ValidationItem(validation_id=row.id, position=position, name=name, kind=kind)
            item.allocation_id = self.jobs["allocation:optimal"] if position else None
            item.matrix_bytes, item.predicted_kl, item.kl, item.kl_se = 1_300_000, predicted, 1.1 * predicted, 0.002
            item.nll, item.ppl = 2.3 + predicted, math.exp(2.3 + predicted)
            session.add(item)
        return row.id

    def _fit(self, session: Session, model: Model, job: Job) -> str:
        residuals = [
            {key: m[key] for key in ("layer_idx", "projection", "expert_idx")}
            | {"b_q": c["b_q"], "rank": c["rank"], "error": _error(m["layer_idx"], m["projection"], c)}
            | {"predicted": _error(m["layer_idx"], m["projection"], c) * (1 + 0.3 * math.sin(7.0 * i))}
            for i, (m, c) in enumerate((m, c) for m in model.matrices for c in CONFIGS[:9])
        ]
        fit = Fit(id=new_id("fit"), model_id=model.id, calibration_id=self.jobs["calibration"], job_id=job.id)
        fit.form, fit.metric, fit.codebook, fit.n_observations = (
            "additive",
            "calibration_weighted_error",
            "e8",
            len(residuals),
        )
        fit.r2, fit.r2_log, fit.cv_error, fit.residuals = 0.931, 0.957, 0.082, residuals
        fit.r2_by_projection, fit.r2_by_group, fit.checks, fit.seconds = {}, {}, {}, 0.3
        fit.cv_layer_error, fit.chosen = 0.11, True
        layers = [{"layers": [i], "profile": []} for i in range(self.n_layers)]
        fit.details = {
            "selection": [
                {"form": "additive", "reason": "the least error", "cv_rmse": 0.082, "cv_layer_rmse": 0.11},
                {"form": "multiplicative", "reason": "not fitted: one rank is not enough"},
            ],
            "clusters": [{"basis": "level_and_shape", "clusters": layers, "reason": "the gap is largest there"}],
        }
        session.add(fit)
        session.flush()
        return fit.id

    def _allocate(self, session: Session, model: Model, study: Study, job: Job) -> str:
        name = str(job.step).split(":")[1]
        row = Allocation(id=new_id("alc"), model_id=model.id, job_id=job.id, study_id=study.id, name=name, kind=name)
        row.scope, row.matrix_bytes, row.fixed_bytes, row.total_bytes = "decoder", 1_300_000, 2_140_000, 1_300_000
        row.bits_per_weight, row.n_distinct_configs, row.content_hash = 2.31, 4, new_id("h")
        row.overrides_yaml, row.seconds, row.optimal = "", 0.1, name == "optimal" or None
        row.objective_value = 0.2 if name == "optimal" else 0.3
        session.add(row)
        session.flush()
        for i, m in enumerate(model.matrices):
            config = CONFIGS[1] if name == "uniform" else CONFIGS[(i * 5 + m["layer_idx"]) % 7]
            key = {k: m[k] for k in ("layer_idx", "projection", "expert_idx")}
            item = AllocationItem(**key, allocation_id=row.id, config_hash=_hash(config), config=config)
            item.b_q, item.rank = config["b_q"], config["rank"]
            item.nbytes = _nbytes(m["out_features"] * m["in_features"], config)
            session.add(item)
        self.jobs[f"allocation:{name}"] = row.id
        return row.id

    def _compress(self, session: Session, model: Model, job: Job) -> str:
        name = str(job.step).split(":")[1]
        row = Compression(id=new_id("cmp"), model_id=model.id, calibration_id=self.jobs["calibration"], job_id=job.id)
        row.allocation_id, row.artefact_id = self.jobs[f"allocation:{name}"], self.jobs["artefact"]
        row.content_hash, row.numerics_version, row.device_kind = new_id("h"), 1, "cpu"
        row.expected_bytes = row.actual_bytes = 3_440_128 if name == "uniform" else 3_439_872
        row.seconds = 4.0
        session.add(row)
        session.flush()
        self.jobs[f"compression:{name}"] = row.id
        return row.id

    def _evaluate(self, session: Session, model: Model, job: Job) -> str:
        name = str(job.step).split(":")[1]
        row = Evaluation(id=new_id("evl"), model_id=model.id, job_id=job.id, content_hash=new_id("h"))
        row.compression_id = self.jobs.get(f"compression:{name}")
        row.task, row.dataset, row.split, row.metric, row.value = "perplexity", "stdlib", "report", "ppl", PPL[name]
        row.ci_low, row.ci_high, row.nll = PPL[name] * 0.96, PPL[name] * 1.04, math.log(PPL[name])
        row.n_items, row.n_tokens, row.token_hash, row.text = 64, 16384, "r", {"kind": "stdlib"}
        row.numerics_version, row.device_kind, row.seconds = 1, "cpu", 3.0
        session.add(row)
        session.flush()
        return row.id

    def _gate(self, session: Session, study: Study, job: Job) -> None:
        verdicts = {0: "GO", 1: "GO", 2: "GO", 3: "NOT DECIDABLE", 4: "NO-GO"}
        phase = job.phase or 0
        gate = Gate(id=new_id("gte"), study_id=study.id, job_id=job.id, phase=phase, name=str(job.step))
        gate.question, gate.verdict = f"Does phase {phase} vary enough?", verdicts[phase]
        gate.value, gate.threshold, gate.ci_low, gate.ci_high, gate.unit = 5.4321, 3.0, 4.1, 6.9, "×"
        gate.explanation, gate.fallback = (
            "The ratio of the largest to the smallest, by bootstrap.",
            "Re-examine the error model.",
        )
        gate.needed_samples = 240 if phase == 3 else None
        session.add(gate)

    @staticmethod
    def _headline() -> dict[str, Any]:
        rows = [
            {
                "name": n,
                "label": n,
                "bytes": b,
                "bits_per_weight": 2.31,
                "ppl": p,
                "ppl_low": p * 0.96,
                "ppl_high": p * 1.04,
            }
            for n, b, p in (
                ("original", 10_860_000, 9.62),
                ("uniform", 3_440_128, 13.04),
                ("optimal", 3_439_872, 12.31),
            )
        ]
        comparison = {
            "relative_ppl_change": -0.056,
            "low": -0.071,
            "high": -0.041,
            "verdict": "optimal is better",
            "n_windows": 64,
        }
        entry = {
            "dataset": "stdlib",
            "split": "report",
            "budget_bytes": 3_440_128,
            "rows": rows,
            "optimal_vs_uniform": comparison,
            "ceiling": "The original itself would gain 26.20 % over best uniform.",
            "validation": {"spearman": 0.96, "spearman_low": 0.91, "spearman_high": 0.99, "n_allocations": 12},
        }
        entry["sentence"] = (
            "optimal beats best uniform by 5.60 % perplexity (95 % interval +4.10 … +7.10 %, 64 windows)."
        )
        return entry | {"budgets": [entry]}


@pytest.fixture(scope="session")
def var_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder, so that the chart library is built once."""
    return tmp_path_factory.mktemp("var")


@pytest.fixture
def settings(var_dir: Path, database_url: str, repo: Path) -> Settings:
    return Settings(var_dir=var_dir, database_url=database_url, model_roots=(repo,))


@pytest.fixture
def filler(database: Database) -> Filler:
    return Filler(database)


@pytest.fixture(autouse=True)
def _is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every database here is a copy of one that was upgraded: to make its views anew takes 0.1 s on PostgreSQL."""
    monkeypatch.setattr("server.app.upgrade", lambda database: None)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The server as it is, without its advance loop: no job of the filler may move by itself."""
    return create_app(settings, run_loop=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@dataclass(frozen=True)
class Shown:
    """A page for tests that only look at it: one study has ended, the other has done half of its sweep."""

    client: TestClient
    ended: str
    running: str
    #: jobs of the running study by their steps
    jobs: dict[str, str]


@pytest.fixture(scope="session")
def shown_on(
    new_database: Callable[[str, Path], str],
    var_dir: Path,
    repo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Shown]]:
    """``Shown`` on a database of a kind, filled when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def show(backend: str) -> Shown:
            url = new_database(backend, tmp_path_factory.mktemp("shown"))
            app = create_app(Settings(var_dir=var_dir, database_url=url, model_roots=(repo,)), run_loop=False)
            client = stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))
            filler = Filler(app.state.database)
            ended = filler.study("a finished one")
            return Shown(client, ended, filler.study("a running one", upto="sweep", sweep_share=0.5), filler.jobs)

        yield show


@pytest.fixture
def shown(database_backend: str, shown_on: Callable[[str], Shown]) -> Shown:
    """What nobody changes."""
    return shown_on(database_backend)
