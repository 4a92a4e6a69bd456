"""Measured errors and sensitivities, one value a cell: what fits, allocations and gates are computed from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from results_db.tables import Measurement, SensitivityAnchor, SensitivityEstimate


def measured_cells(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    numerics_version: int,
    codebook: str | None = None,
    states: int | None = None,
    config_hashes: Collection[str] | None = None,
) -> list[Measurement]:
    """The newest measurement of every (matrix, config), in the order of the model.

    Only one numerics version counts: errors of two versions must not be mixed.
    """
    query = (
        select(Measurement)
        .where(
            Measurement.model_id == model_id,
            Measurement.calibration_id == calibration_id,
            Measurement.numerics_version == numerics_version,
        )
        .order_by(Measurement.id)
    )
    if codebook is not None:
        query = query.where(Measurement.codebook == codebook)
    if states is not None:
        query = query.where(Measurement.states == states)
    if config_hashes is not None:
        query = query.where(Measurement.config_hash.in_(config_hashes))
    # a cell measured on two kinds of device: the later row wins
    newest = {(m.layer_idx, m.projection, m.expert_idx, m.config_hash): m for m in session.scalars(query)}
    return list(newest.values())


def measured_sensitivities(
    session: Session, *, model_id: str, calibration_id: str, numerics_version: int, method: str = "kl_anchor"
) -> Sequence[SensitivityAnchor]:
    """The anchors of one measuring text, never of several averaged: that of the newest job that concluded something.

    Where none has: the text that covers most matrices, of equal ones the latest.
    """
    where = {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "numerics_version": numerics_version,
        "method": method,
    }
    rows = session.scalars(select(SensitivityAnchor).filter_by(**where).order_by(SensitivityAnchor.id)).all()
    concluded = session.scalar(
        select(SensitivityEstimate.token_hash).filter_by(**where).order_by(SensitivityEstimate.id.desc()).limit(1)
    )
    by_text: dict[str, list[SensitivityAnchor]] = {}
    for row in rows:
        by_text.setdefault(row.token_hash, []).append(row)
    if not by_text:
        return []
    if concluded in by_text:
        chosen = by_text[concluded]
    else:
        chosen = max(
            by_text.values(),
            key=lambda group: (len({(r.layer_idx, r.projection, r.expert_idx) for r in group}), group[-1].id),
        )
    newest = {(r.layer_idx, r.projection, r.expert_idx, r.anchor_config_hash): r for r in chosen}
    return list(newest.values())


def sensitivity_estimates(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    numerics_version: int,
    method: str = "kl_anchor",
    incumbent_hash: str | None = None,
    token_hash: str | None = None,
    job_id: str | None = None,
) -> Sequence[Row[Any]]:
    """Rows of ``sensitivity_estimates``: a_i of every matrix as the newest job concluded them.

    One job, one text, one kind of device: never a mixture.

    Args:
        incumbent_hash: of method reanchored: only those measured at the allocation with this content_hash.
        token_hash, job_id: only those concluded from these tokens, by this job.
    """
    c = SensitivityEstimate.__table__.c
    where = [
        c.model_id == model_id,
        c.calibration_id == calibration_id,
        c.numerics_version == numerics_version,
        c.method == method,
    ]
    asked = {"incumbent_hash": incumbent_hash, "token_hash": token_hash, "job_id": job_id}
    where += [c[name] == value for name, value in asked.items() if value is not None]
    # rows, not objects: an allocation reads thousands at a time
    connection = session.connection()
    newest = connection.execute(select(*c).where(*where).order_by(c.id.desc()).limit(1)).first()
    if newest is None:
        return []
    one_job = [c[name] == getattr(newest, name) for name in ("job_id", "metric", "incumbent_hash", "token_hash")]
    query = select(*c).where(*where, *one_job, c.device_kind == newest.device_kind)
    return connection.execute(query.order_by(c.id)).all()
