"""sweep: measure a grid of configs on the matrices of a model. What is recorded is measured again by force alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sqlalchemy.orm import Session

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixMeasurement, MatrixSpec, sweep_matrix
from compress_core.calibrate.inputs import INPUT_OF
from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint import Checkpoint
from compress_core.checkpoint.read import read_matrix
from compress_core.errors import ConfigError
from compress_core.grid import fitting
from compress_core.shared_inputs import SharedInput, SharedInputs
from results_db.params import MatrixFilter, SweepParams
from results_db.queries.parts import parts_of
from results_db.queue.transitions import get_job
from results_db.recording import Cell, count_own_cells, record_measurement, record_sweep, recorded_cells
from results_db.retire import count_replaced, forced_cells, record_again
from worker.causes import naming
from worker.context import JobContext
from worker.inputs import get_calibration, open_calibration, open_model


@dataclass(frozen=True)
class SweepPlan:
    """Which configs each matrix is measured with, ranks clamped to the matrix, equal ones merged."""

    #: (matrix, its configs), in the order of the layers and of their inputs
    rows: tuple[tuple[MatrixSpec, tuple[CompressionConfig, ...]], ...]
    #: [{layer_idx, projection, expert_idx, requested_rank, rank}, …]
    clamped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_cells(self) -> int:
        return sum(len(configs) for _, configs in self.rows)

    @property
    def config_hashes(self) -> list[str]:
        return sorted({config.config_hash for _, configs in self.rows for config in configs})


def run(params: SweepParams, context: JobContext) -> dict[str, Any]:
    """Result: {sweep_id, calibration_id, recorded, reused, n_cells}, and n_parts of a sweep whose layers were jobs.

    A part counts its own cells alone. A whole counts what the sweep recorded, its parts included, and calls reused
    what another sweep had measured before. Another attempt's cells count as reused in every other job. A forced sweep
    reuses nothing but what it measured itself, and tells how many measurements it replaced.
    """
    model, checkpoint = open_model(context, params.model_id)
    calibration = get_calibration(context, model, params.calibration_id)
    configs = [CompressionConfig.from_dict(values) for values in params.configs]
    n_parts, matrices = context.recorder.read(lambda session: _place(session, context.claim.job_id, params))
    whole = plan_sweep(checkpoint, configs, matrices)
    sweep_id = context.recorder.write(
        lambda session, claim: record_sweep(
            session,
            claim,
            job_id=params.part_of,
            model_id=model.id,
            calibration_id=calibration.id,
            configs=[config.to_dict() for config in configs],
            config_hashes=whole.config_hashes,
            clamped=whole.clamped,
            n_cells=whole.n_cells,
        )
    )
    plan = whole if params.part_of is None else plan_sweep(checkpoint, configs, params.matrices)
    # parts may have run on other devices than this one
    device_kind = None if n_parts else context.device.kind
    known = context.recorder.read(
        lambda session: (
            forced_cells(session, sweep_id, device_kind=device_kind)
            if params.force
            else recorded_cells(
                session,
                model_id=model.id,
                calibration_id=calibration.id,
                config_hashes=plan.config_hashes,
                numerics_version=NUMERICS_VERSION,
                device_kind=device_kind,
            )
        )
    )
    unknown = ((spec, [c for c in configs if cell_of(spec, c) not in known]) for spec, configs in plan.rows)
    todo = [(spec, missing) for spec, missing in unknown if missing]
    reused = plan.n_cells - sum(len(missing) for _, missing in todo)
    context.progress.begin(plan.n_cells, reused=reused, message=f"{reused} of {plan.n_cells} cells are known")
    spectrum_rank = 2 * max(config.rank for config in configs)
    record = record_again if params.force else record_measurement
    run = _SweepRun(context, plan.n_cells, reused, model.id, calibration.id, sweep_id, spectrum_rank, record)
    if todo:
        # H may be computed while the model streams by: layers in order, those that are known left out. Of the others
        # all inputs are named: an attempt that goes on in mid-layer finds what the last one gathered
        layers = {spec.key.layer_idx for spec, _ in todo}
        wanted = {spec.key for spec, _ in plan.rows if spec.key.layer_idx in layers}
        hessians = open_calibration(context, calibration, checkpoint, wanted=wanted)
        device = torch.device(context.device.torch_name)
        inputs = SharedInputs(hessians, device)
        for spec, missing in todo:
            with naming(f"matrix {spec.key}"):
                if context.starved:
                    run.measure_apart(checkpoint, spec, missing, hessians, device)
                else:
                    run.measure(checkpoint, spec, missing, inputs.of(spec))
        hessians.close()
    counts: dict[str, Any] = {"recorded": run.recorded, "reused": reused}
    if n_parts:
        recorded = context.recorder.read(lambda session: count_own_cells(session, sweep_id))
        counts = {"recorded": recorded, "reused": plan.n_cells - recorded, "n_parts": n_parts}
    if params.force and params.part_of is None:
        counts["replaced"] = context.recorder.read(lambda session: count_replaced(session, sweep_id))
    return {"sweep_id": sweep_id, "calibration_id": calibration.id} | counts | {"n_cells": plan.n_cells}


def _place(session: Session, job_id: str, params: SweepParams) -> tuple[int, MatrixFilter]:
    """How many parts a job has, and which matrices the sweep has in all that this job belongs to."""
    if params.part_of is None:
        return len(parts_of(session, get_job(session, job_id))), params.matrices
    return 0, MatrixFilter.model_validate(get_job(session, params.part_of).params.get("matrices") or {})


@dataclass
class _SweepRun:
    """The loop's state: measures matrices and records each measurement as soon as it is known."""

    context: JobContext
    n_cells: int
    done: int
    model_id: str
    calibration_id: str
    sweep_id: str
    #: the same for every attempt, whatever it finds recorded
    spectrum_rank: int
    #: one measurement; whether it was kept
    keep: Callable[..., bool]
    recorded: int = 0

    def measure(
        self, checkpoint: Checkpoint, spec: MatrixSpec, configs: Sequence[CompressionConfig], shared: SharedInput
    ) -> None:
        sweep_matrix(
            read_matrix(checkpoint, spec),
            shared.h_II,
            configs,
            device=shared.device,
            shared=shared,
            spectrum_rank=self.spectrum_rank,
            on_measurement=partial(self.record, spec),
        )

    def measure_apart(
        self,
        checkpoint: Checkpoint,
        spec: MatrixSpec,
        configs: Sequence[CompressionConfig],
        hessians: HessianSource,
        device: torch.device,
    ) -> None:
        """The same numbers in less memory and more time: a config at a time, nothing kept for the next one or for other
        matrices, and H read whenever it is needed."""

        def load() -> torch.Tensor:
            return hessians.hessian(spec.key).to(device)

        for config in configs:
            sweep_matrix(
                read_matrix(checkpoint, spec),
                load,
                [config],
                device=device,
                spectrum_rank=self.spectrum_rank,
                on_measurement=partial(self.record, spec),
            )

    def record(self, spec: MatrixSpec, measurement: MatrixMeasurement) -> None:
        values = measurement_row(spec, measurement) | {
            "model_id": self.model_id,
            "calibration_id": self.calibration_id,
            "sweep_id": self.sweep_id,
            "numerics_version": NUMERICS_VERSION,
            "device_kind": self.context.device.kind,
        }
        self.recorded += self.context.recorder.write(lambda session, claim: self.keep(session, claim, **values))
        self.done += 1
        self.context.progress(self.done, self.n_cells, f"{spec.key} {measurement.config}")


def plan_sweep(
    checkpoint: Checkpoint,
    configs: Iterable[CompressionConfig],
    matrices: MatrixFilter = MatrixFilter(),  # noqa: B008
) -> SweepPlan:
    """The cells of a sweep.

    Raises:
        ConfigError: no matrix passes the filter.
    """
    asked = list(configs)
    rows, clamped = [], []
    wanted = [spec for spec in checkpoint.matrices() if matrices.passes(spec.key.layer_idx, spec.key.projection)]
    for spec in _in_input_order(wanted):
        largest = min(spec.out_features, spec.in_features)
        for config in asked:
            if config.rank > largest:
                clamped.append(_matrix_columns(spec) | {"requested_rank": config.rank, "rank": largest})
        rows.append((spec, tuple(fitting(spec, asked).values())))
    if not rows:
        raise ConfigError(f"no matrix of this model passes the filter {matrices.model_dump(exclude_none=True)}")
    return SweepPlan(tuple(rows), clamped)


def cell_of(spec: MatrixSpec, config: CompressionConfig) -> Cell:
    return (spec.key.layer_idx, spec.key.projection, spec.key.expert_idx, config.config_hash)


def measurement_row(spec: MatrixSpec, measurement: MatrixMeasurement) -> dict[str, Any]:
    """The columns of a measurement that do not depend on the job."""
    config, spectrum = measurement.config, measurement.residual_spectrum
    return _matrix_columns(spec) | {
        "out_features": spec.out_features,
        "in_features": spec.in_features,
        "config_hash": config.config_hash,
        "config": config.to_dict(),
        "b_q": config.b_q,
        "rank": config.rank,
        "factor_bits_l": config.factor_bits_l,
        "factor_bits_r": config.factor_bits_r,
        "codebook": config.codebook,
        "states": config.states if config.codebook == "trellis" else None,
        "seed": config.seed,
        "raw_mse": measurement.raw_mse,
        "normalized_mse": measurement.normalized_mse,
        "calibration_weighted_error": measurement.calibration_weighted_error,
        "nbytes": measurement.nbytes,
        "bits_per_weight": measurement.bits_per_weight,
        "seconds": measurement.seconds,
        "residual_spectrum": None if spectrum is None else spectrum.to_dict(),
    }


def _matrix_columns(spec: MatrixSpec) -> dict[str, Any]:
    key = spec.key
    return {"layer_idx": key.layer_idx, "projection": key.projection, "expert_idx": key.expert_idx}


def _in_input_order(specs: list[MatrixSpec]) -> list[MatrixSpec]:
    """Projections that read the same input next to each other (the order of PROJECTIONS already does that)."""
    groups = list(dict.fromkeys(INPUT_OF.values()))
    return sorted(
        specs, key=lambda spec: (spec.key.layer_idx, spec.key.expert_idx, groups.index(INPUT_OF[spec.key.projection]))
    )
