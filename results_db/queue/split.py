"""Split a sweep: layers are independent, so each becomes a job of its own and several workers share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from results_db.params import MatrixFilter
from results_db.queries.parts import part_of
from results_db.queue.events import record_event
from results_db.queue.submit import submit_job
from results_db.queue.transitions import get_job
from results_db.states import JobKind, JobState
from results_db.tables import Calibration, Job, Model

#: what a calibration keeps whose Hessians are computed anew, layer after layer, by the job that needs them
_KEEPS_TOKENS = "tokens"


def layers_to_split(session: Session, params: Mapping[str, Any]) -> list[int]:
    """The layers that become parts of a sweep with these parameters; empty where it stays one job.

    It stays one where it asks for that, has one layer, is a part itself, or has a calibration without stored Hessians:
    each part would run the model through all the layers before its own.
    """
    if part_of(dict(params)) is not None or params.get("split") == "none" or keeps_tokens(session, params):
        return []
    model = session.get(Model, params["model_id"])
    only = MatrixFilter.model_validate(params.get("matrices") or {})
    matrices = model.matrices if model else []
    layers = sorted({m["layer_idx"] for m in matrices if only.passes(m["layer_idx"], m["projection"])})
    return layers if len(layers) > 1 else []


def keeps_tokens(session: Session, params: Mapping[str, Any]) -> bool:
    """Whether the calibration named stores the recipe alone."""
    id_ = params.get("calibration_id")
    calibration = None if id_ is None else session.get(Calibration, id_)
    return calibration is not None and calibration.keeps == _KEEPS_TOKENS


def add_parts(
    session: Session, whole_id: str, params: Mapping[str, Any], layers: list[int], **options: Any
) -> list[str]:
    """Queue one part a layer; their ids. ``options`` are those of :func:`submit_job` that whole and parts share."""
    only = dict(params.get("matrices") or {})
    step = options.pop("step", None)
    ids = []
    for layer in layers:
        part = submit_job(
            session,
            JobKind.SWEEP,
            dict(params) | {"part_of": whole_id, "matrices": only | {"layers": [layer]}},
            step=f"{step or JobKind.SWEEP.value}:layer-{layer}",
            **options,
        )
        ids.append(part.id)
    return ids


def split_waiting(session: Session, whole: Job, params: Mapping[str, Any]) -> bool:
    """Split a waiting sweep whose other dependencies have ended, and let it wait for its parts; False where it stays
    one job. ``params`` are its parameters with all that comes from those dependencies filled in."""
    layers = layers_to_split(session, params)
    if not layers or get_job(session, whole.id, lock=True).state != JobState.WAITING:
        return False
    parts = add_parts(
        session,
        whole.id,
        params,
        layers,
        study_id=whole.study_id,
        step=whole.step,
        phase=whole.phase,
        position=whole.position,
        priority=whole.priority,
        max_attempts=whole.max_attempts,
        trace_id=whole.trace_id,
    )
    whole.depends_on = [*whole.depends_on, *parts]
    session.flush()
    record_event(session, whole, "note", payload={"message": f"split into {len(parts)} layers"})
    return True
