"""Ask a worker for a sweep, and say how far one has come."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy.orm import Session

from compress_core.config import CompressionConfig
from compress_core.grid import fitting
from compress_core.matrix import MatrixKey
from compress_core.version import NUMERICS_VERSION
from results_db.ids import new_id
from results_db.params import MatrixFilter, SweepParams
from results_db.queries.parts import parts_of
from results_db.queue.split import add_parts, keeps_tokens, layers_to_split
from results_db.queue.submit import submit_job
from results_db.recording import recorded_cells as known_cells
from results_db.retire import forced_cells
from results_db.states import JobKind
from results_db.tables import Job, Model, Sweep
from server.kit.checks import check_calibration, check_configs, check_matrices
from server.kit.problem import invalid
from server.kit.rows import get_row
from server.models.service import model_specs

#: (matrix, config_hash)
Cell = tuple[MatrixKey, str]


def submit_sweep(session: Session, params: SweepParams) -> Job:
    """A sweep job, and before it one for each layer. Ranks beyond a small matrix are clamped by the worker, and the
    sweep records where.

    Raises:
        Problem: something that it names is not there, or cannot be split.
    """
    if params.part_of is not None:
        raise invalid("part_of", "the server splits a sweep itself: leave this out")
    # before the session's first statement, with which the write lock comes: a body may hold 100,000 configs
    configs = check_configs(params.configs, "configs")
    model = get_row(session, Model, params.model_id)
    check_matrices(params.matrices, model_specs(model), "matrices")
    checked = params.model_copy(
        update={
            "calibration_id": check_calibration(session, params.model_id, params.calibration_id).id,
            "configs": configs,
        }
    )
    values = checked.model_dump(mode="json")
    if params.split == "layer" and keeps_tokens(session, values):
        raise invalid(
            "split",
            f"calibration {values['calibration_id']} keeps no Hessians: they are computed again layer by layer, in one "
            "pass through the model, so its sweeps are one job. Leave split out, or calibrate with keep: hessians",
        )
    layers = layers_to_split(session, values)
    if not layers:
        return submit_job(session, JobKind.SWEEP, values)
    whole_id = new_id("job")
    parts = add_parts(session, whole_id, values, layers)
    return submit_job(session, JobKind.SWEEP, values, id=whole_id, depends_on=parts)


def describe_sweep(session: Session, sweep: Sweep) -> dict[str, Any]:
    """The sweep with ``n_recorded``: its cells that are measured by now, whoever measured them first (of a forced
    sweep, those that it measured itself); ``state`` is its job's, ``parts`` counts the jobs of its layers by their
    states (empty where it is one job)."""
    job = get_row(session, Job, sweep.job_id)
    return sweep.as_dict() | {
        "n_recorded": len(recorded_cells(session, sweep)),
        "state": job.state,
        "parts": dict(Counter(part.state for part in parts_of(session, job))),
    }


def recorded_cells(session: Session, sweep: Sweep) -> set[Cell]:
    """The cells of the sweep that are measured; those of a forced sweep: measured by itself."""
    if get_row(session, Job, sweep.job_id).params.get("force"):
        found = forced_cells(session, sweep.id)
    else:
        found = known_cells(
            session,
            model_id=sweep.model_id,
            calibration_id=sweep.calibration_id,
            config_hashes=sweep.config_hashes,
            numerics_version=NUMERICS_VERSION,
            device_kind=None,
        )
    measured = {
        (MatrixKey(layer_idx, projection, expert_idx), hash_) for layer_idx, projection, expert_idx, hash_ in found
    }
    return _cells(session, sweep) & measured


def _cells(session: Session, sweep: Sweep) -> set[Cell]:
    """Every cell that the sweep asked for, ranks clamped to the matrix."""
    only = MatrixFilter.model_validate(get_row(session, Job, sweep.job_id).params.get("matrices") or {})
    configs = [CompressionConfig.from_dict(fields) for fields in sweep.configs]
    return {
        (spec.key, config_hash)
        for spec in model_specs(get_row(session, Model, sweep.model_id))
        if only.passes(spec.key.layer_idx, spec.key.projection)
        for config_hash in fitting(spec, configs)
    }
