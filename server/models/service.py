"""Register a checkpoint: inspect a local directory without torch, or leave a hub id to a fetch job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from compress_core.checkpoint import open_checkpoint
from compress_core.hub import is_hub_id
from compress_core.matrix import MatrixKey, MatrixSpec
from compress_core.pack.layout import fixed_bytes
from results_db.alone import alone
from results_db.ids import new_id
from results_db.queries.models import checkpoint_columns, find_by_fingerprint, find_by_source
from results_db.queue.submit import submit_job
from results_db.settings import Settings
from results_db.states import JobKind
from results_db.tables import Job, Model
from server.kit.problem import Problem, invalid
from server.models.schemas import ModelRequest

_INSPECTED = 32


@dataclass(frozen=True, slots=True)
class Inspected:
    """A request whose checkpoint was looked at, before any transaction."""

    request: ModelRequest
    #: columns of a local checkpoint; None = a hub id that a worker has to fetch
    columns: dict[str, Any] | None


def inspect_source(request: ModelRequest, settings: Settings) -> Inspected:
    """Open a local checkpoint (this may read many GB) or recognise a hub id.

    Raises:
        Problem: model-not-found.
        PathNotAllowed: the path, or a file in it, lies outside the model roots.
        CheckpointError: there is something at the path that is no checkpoint of ours.
    """
    if is_hub_id(request.source) and not os.path.exists(request.source):
        if request.revision is None:
            raise invalid(
                "source",
                f"{request.source} is no local directory, and as a hub id it needs a pinned revision "
                "(the 40 hex digits of a commit)",
                slug="model-not-found",
            )
        return Inspected(request, None)
    resolved = settings.resolve_folder(request.source)
    if not resolved.exists():
        raise invalid(
            "source", f"{request.source} does not exist: give the directory of a checkpoint", slug="model-not-found"
        )
    files = tuple(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in resolved.glob("*") if p.is_file()))
    return Inspected(request, _columns(resolved, files))


@lru_cache(maxsize=_INSPECTED)
def _columns(path: Path, files: tuple[tuple[str, int, int], ...]) -> dict[str, Any]:
    # ``files`` is part of the key: a checkpoint that changed is read again
    checkpoint = open_checkpoint(path)
    return checkpoint_columns(checkpoint, fixed_bytes(checkpoint))


def register_model(session: Session, inspected: Inspected, *, fetch: bool = True) -> tuple[Model, bool, Job | None]:
    """The model's row, whether it is new, and the fetch job of a new hub model (a study brings its own)."""
    request, columns = inspected.request, inspected.columns
    # two requests for one model: the second waits here until the first has committed, and finds its row
    alone(session, f"model {request.source}@{request.revision}" if columns is None else str(columns["fingerprint"]))
    known = (
        find_by_source(session, request.source, request.revision)
        if columns is None
        else find_by_fingerprint(session, columns["fingerprint"])
    )
    if known is not None:
        if columns is not None:
            # the same weights may have moved: work with where they were seen last
            known.local_path = columns["local_path"]
        return known, False, None
    model = Model(
        id=new_id("model"),
        name=request.name or Path(request.source.rstrip("/")).name or request.source,
        source=request.source,
        revision=request.revision,
        **(columns or {}),
    )
    session.add(model)
    session.flush()
    if columns is not None or not fetch:
        return model, True, None
    return model, True, submit_job(session, JobKind.FETCH, {"model_id": model.id})


def require_local(model: Model) -> Model:
    """The model, whose files are here.

    Raises:
        Problem: model-not-fetched.
    """
    if model.local_path is None:
        raise Problem(
            409,
            "model-not-fetched",
            f"model {model.id} ({model.source}) is not fetched yet: wait for its fetch job, then ask again",
        )
    return model


def model_specs(model: Model) -> tuple[MatrixSpec, ...]:
    """The matrices of the model, with the order and the shapes of its checkpoint.

    Raises:
        Problem: model-not-fetched.
    """
    return tuple(
        MatrixSpec(MatrixKey(m["layer_idx"], m["projection"], m["expert_idx"]), m["out_features"], m["in_features"], "")
        for m in require_local(model).matrices
    )


def original_matrix_bytes(model: Model) -> int:
    """Bytes that the matrices take uncompressed."""
    return sum(int(m["nbytes"]) for m in model.matrices)
