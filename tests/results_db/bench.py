"""A model whose measurements are recorded, replaced and retired by hand, and rows that stand on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from results_db.ids import new_id
from results_db.queue.lease import Claim
from results_db.recording import record_calibration, record_measurement, record_sweep
from results_db.retire import Retired, invalidate, record_again
from results_db.states import JobKind
from results_db.tables import Allocation, AllocationItem, Fit, Gate, Job, Measurement, Model, Study

CPU = {"numerics_version": 1, "device_kind": "cpu"}
#: two configs on one matrix of each of two layers
CELLS = [(layer, "q", -1, f"h{b_q}") for layer in (0, 1) for b_q in (2, 3)]


class Bench:
    """One calibrated model, and sweeps that tests record by hand."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        with queue.database.write() as session:
            session.add(Model(id="mod_1", name="tiny", source="x"))
        values = CPU | {"model_id": "mod_1", "n_samples": 1, "sample_length": 8, "n_tokens": 8, "seed": 0}
        values |= {"token_hash": "t", "text": {}, "seconds": 0.1, "content_hash": "c"}
        maker = queue.run(queue.submit(JobKind.CALIBRATE))
        self.calibration_id = queue.do(record_calibration, maker, uri="file", nbytes=1, **values)

    def sweep(self, **options: Any) -> tuple[Claim, str]:
        """A running sweep job and its sweep's id."""
        claim = self.queue.run(self.queue.submit(JobKind.SWEEP, **options))
        return claim, self.begin(claim)

    def begin(self, claim: Claim) -> str:
        values = {"model_id": "mod_1", "calibration_id": self.calibration_id, "configs": [{}]}
        more = {"config_hashes": ["h2", "h3"], "clamped": [], "n_cells": len(CELLS)}
        return str(self.queue.do(record_sweep, claim, **values, **more))

    def values(self, sweep_id: str, cell: tuple[int, str, int, str], error: float = 0.1) -> dict[str, Any]:
        layer, projection, expert, config_hash = cell
        b_q = int(config_hash[1:])
        row = {"layer_idx": layer, "projection": projection, "expert_idx": expert, "config_hash": config_hash}
        row |= {"model_id": "mod_1", "calibration_id": self.calibration_id, "sweep_id": sweep_id, "b_q": b_q}
        row |= {"config": {"b_q": b_q}, "rank": 0, "factor_bits_l": 4, "factor_bits_r": 4, "codebook": "e8"}
        row |= {"states": None, "seed": 0, "out_features": 8, "in_features": 8, "raw_mse": 0.1}
        row |= {"normalized_mse": 0.1, "calibration_weighted_error": error, "nbytes": 16, "bits_per_weight": 2.0}
        return row | {"seconds": 0.1, "residual_spectrum": {"ranks": [1], "captured": [0.3]}} | CPU

    def measured(self) -> str:
        """A sweep that has measured every cell; its id."""
        claim, sweep_id = self.sweep()
        for cell in CELLS:
            self.queue.do(record_measurement, claim, **self.values(sweep_id, cell))
        return sweep_id

    def again(self, claim: Claim, sweep_id: str, cell: tuple[int, str, int, str], error: float = 0.1, **o: Any) -> bool:
        return bool(self.queue.do(record_again, claim, **(self.values(sweep_id, cell, error) | o)))

    def invalidate(self, layer: int, config_hash: str, **options: Any) -> Retired:
        where = (Measurement.layer_idx == layer) & (Measurement.config_hash == config_hash)
        return self.queue.do(invalidate, where, "a broken fan", **options)  # type: ignore[no-any-return]

    def rows(self, table: Any) -> list[Any]:
        with self.queue.database.read() as session:
            return list(session.scalars(select(table).order_by(table.id)))

    # --- what is computed from measurements

    def fit(self, cells: list[tuple[int, str, int, str]], *, codebook: str = "e8", job_id: str | None = None) -> str:
        return self._add(self.fit_row(cells, codebook=codebook, job_id=job_id))

    def fit_row(
        self, cells: list[tuple[int, str, int, str]], *, codebook: str = "e8", job_id: str | None = None
    ) -> Fit:
        residuals = [
            {"layer_idx": c[0], "projection": c[1], "expert_idx": c[2], "b_q": int(c[3][1:]), "rank": 0, "error": 0.1}
            for c in cells
        ]
        return Fit(
            **{"id": new_id("fit"), "model_id": "mod_1", "calibration_id": self.calibration_id, "form": "additive"},
            **{"metric": "calibration_weighted_error", "codebook": codebook, "n_observations": len(cells), "r2": 1.0},
            **{"r2_log": 1.0, "r2_by_projection": {}, "r2_by_group": {}, "checks": {}, "seconds": 0.1},
            **{"residuals": [r | {"predicted": 0.1} for r in residuals], "job_id": job_id},
        )

    def allocation(self, chosen: list[tuple[int, str, int, str]], **values: Any) -> str:
        own = {"calibration_id": self.calibration_id, "kind": "optimal", "objective": "kl", "details": {}}
        row = Allocation(
            **{"id": new_id("alloc"), "model_id": "mod_1", "name": "a", "scope": "decoder", "matrix_bytes": 1},
            **{"fixed_bytes": 0, "total_bytes": 1, "bits_per_weight": 2.0, "n_distinct_configs": 1},
            **{"content_hash": new_id("h"), "overrides_yaml": "", "seconds": 0.1},
            **(own | values),
        )
        id_ = self._add(row)
        for layer, projection, expert, config_hash in chosen:
            key = {"layer_idx": layer, "projection": projection, "expert_idx": expert, "config_hash": config_hash}
            numbers = {"config": {}, "b_q": 2, "rank": 0, "nbytes": 16, "error": 0.1}
            self._add(AllocationItem(allocation_id=id_, **key, **numbers))
        return id_

    def gate(self, study_id: str, name: str, job_id: str) -> str:
        values = {"phase": 1, "question": "?", "verdict": "GO", "explanation": "so"}
        return self._add(Gate(id=new_id("gate"), study_id=study_id, job_id=job_id, name=name, **values))

    def study(self) -> str:
        values = {"name": "s", "model_id": "mod_1", "state": "running", "config": {}, "on_no_go": "stop"}
        return self._add(Study(id=new_id("study"), **values))

    def job(self, study_id: str, step: str, position: int, **values: Any) -> str:
        kind = step.split(":")[0]
        row = Job(id=new_id("job"), kind=kind, state="succeeded", study_id=study_id, step=step, position=position)
        for name, value in ({"params": {}} | values).items():
            setattr(row, name, value)
        return self._add(row)

    def _add(self, row: Any) -> str:
        with self.queue.database.write() as session:
            session.add(row)
            session.flush()
            return str(row.id)

    def stale(self) -> dict[str, str]:
        """Id → reason of everything that is marked."""
        rows = [row for table in (Fit, Allocation, Gate) for row in self.rows(table)]
        assert all((row.stale_at is None) == (row.stale_reason is None) for row in rows)
        return {row.id: row.stale_reason for row in rows if row.stale_at is not None}
