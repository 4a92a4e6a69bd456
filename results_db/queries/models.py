"""What a row of ``models`` says of an opened checkpoint, and finding the row again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from results_db.tables import Model


class OpenedCheckpoint(Protocol):
    """The part of compress_core.checkpoint.Checkpoint that a row holds."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Any]: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def matrices(self) -> tuple[Any, ...]: ...
    def stored_nbytes(self, spec: Any) -> int: ...


def checkpoint_columns(checkpoint: OpenedCheckpoint, fixed_bytes: int) -> dict[str, Any]:
    """Columns of ``models`` for a local checkpoint (all but id, name, source and revision).

    Reads every byte of the weights once, for the fingerprint.
    """
    architectures = checkpoint.config.get("architectures") or [checkpoint.config.get("model_type", "unknown")]
    return {
        "local_path": str(checkpoint.path.resolve()),
        "fingerprint": checkpoint.fingerprint,
        "architecture": str(architectures[0]),
        "n_layers": checkpoint.n_layers,
        "matrices": [
            {
                "layer_idx": spec.key.layer_idx,
                "projection": spec.key.projection,
                "expert_idx": spec.key.expert_idx,
                "out_features": spec.out_features,
                "in_features": spec.in_features,
                #: uncompressed
                "nbytes": checkpoint.stored_nbytes(spec),
            }
            for spec in checkpoint.matrices()
        ],
        "fixed_bytes": fixed_bytes,
        "original_bytes": sum(file.stat().st_size for file in {t.file for t in checkpoint.tensors.values()}),
        "config": dict(checkpoint.config),
    }


def find_by_fingerprint(session: Session, fingerprint: str) -> Model | None:
    """The model with these weights, wherever they were found first."""
    return session.scalar(select(Model).where(Model.fingerprint == fingerprint))


def find_by_source(session: Session, source: str, revision: str | None) -> Model | None:
    """The model that was asked for by these words, newest first."""
    query = select(Model).where(Model.source == source, Model.revision == revision).order_by(Model.id.desc()).limit(1)
    return session.scalar(query)
