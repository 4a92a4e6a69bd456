"""A worker whose numbers come from formulas.

It claims attempts and records rows exactly as the real one does, but computes nothing: its errors, sensitivities and
losses are formulas, so that what the server makes of them can be checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import insert, select

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
from results_db.states import AttemptState
from results_db.tables import Allocation, AllocationItem, Attempt, Compression, Job, Measurement, Model, Worker


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
