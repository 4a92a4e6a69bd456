"""What is compressed, and what is known of its inputs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from results_db.base import Base, CreatedAt


class Artefact(CreatedAt, Base):
    """A file or folder that a job wrote: a calibration, a compressed model."""

    __tablename__ = "artefacts"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    #: where it lies: an absolute path, or a URL of a shared store
    uri: Mapped[str]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Model(CreatedAt, Base):
    """A checkpoint. ``matrices`` lists what can be compressed; shapes come from the safetensors headers."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("fingerprint"), Index("ix_models_name", "name"))

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    #: as given: a local path or a hub id
    source: Mapped[str]
    revision: Mapped[str | None]
    #: where the files lie; null until a hub model is fetched
    local_path: Mapped[str | None]
    #: identifies config, tensor headers and content; null until fetched
    fingerprint: Mapped[str | None]
    architecture: Mapped[str | None]
    n_layers: Mapped[int | None]
    #: [{layer_idx, projection, expert_idx, out_features, in_features}, …]
    matrices: Mapped[list[Any]] = mapped_column(default=list)
    #: bytes of a packed model besides its matrices: embeddings, norms, biases, head, file headers
    fixed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: bytes of the original weight files
    original_bytes: Mapped[int | None] = mapped_column(BigInteger)
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Calibration(CreatedAt, Base):
    """H per distinct input of a model, and the data that it came from."""

    __tablename__ = "calibrations"
    __table_args__ = (UniqueConstraint("content_hash"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    artefact_id: Mapped[str] = mapped_column(ForeignKey("artefacts.id"))
    #: hash of model fingerprint, text, sampling and numerics: the same request is the same calibration
    content_hash: Mapped[str]
    n_samples: Mapped[int]
    sample_length: Mapped[int]
    n_tokens: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int]
    #: hash of the exact token ids
    token_hash: Mapped[str]
    #: {"kind": "stdlib"} or {"kind": "file", "path": …}
    text: Mapped[dict[str, Any]]
    numerics_version: Mapped[int]
    device_kind: Mapped[str]
    seconds: Mapped[float]
    #: "hessians", or "tokens" alone: then every job that needs H computes it anew, layer by layer
    keeps: Mapped[str] = mapped_column(default="hessians", server_default="hessians")
