"""What jobs record: rows under a unique key, in the same short transaction that proves the lease.

Every ``record_*`` starts with :func:`hold_lease`, so a stale worker never writes, and inserts or ignores, so a result
that is already there (a restart, a commit whose answer was lost, another worker) is never doubled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from results_db.base import Base
from results_db.clock import utc_now
from results_db.ids import new_id
from results_db.queue.lease import Claim, hold_lease
from results_db.tables import (
    Artefact,
    Calibration,
    Compression,
    Evaluation,
    EvaluationItem,
    LayerFidelityRow,
    Measurement,
    RetiredMeasurement,
    SensitivityAnchor,
    SensitivityEstimate,
    Sweep,
    Throughput,
    Validation,
    ValidationItem,
    ValidationWindow,
)

#: (layer_idx, projection, expert_idx, config_hash)
Cell = tuple[int, str, int, str]


def insert_or_ignore(session: Session, table: type[Base], values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with the same unique key is there; whether it was inserted."""
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    key = inspect(table).primary_key
    # RETURNING, not rowcount: drivers do not agree on the number of rows that an ignored insert counts
    statement = make(table).values(**values).on_conflict_do_nothing().returning(*key)
    return session.execute(statement).first() is not None


def put_artefact(session: Session, kind: str, uri: str, nbytes: int, **values: Any) -> str:
    """Add an artefact's row to the transaction that records what it belongs to; its id."""
    artefact = Artefact(id=new_id("art"), kind=kind, uri=uri, nbytes=nbytes, **values)
    session.add(artefact)
    session.flush()
    return artefact.id


# --- calibrations --------------------------------------------------------------------------------------------------


def find_calibration(session: Session, content_hash: str) -> Calibration | None:
    """The calibration that the same request made before."""
    return session.scalar(select(Calibration).where(Calibration.content_hash == content_hash))


def newest_calibration(session: Session, model_id: str) -> Calibration | None:
    """The calibration that jobs without a ``calibration_id`` take."""
    return session.scalar(
        select(Calibration).where(Calibration.model_id == model_id).order_by(Calibration.id.desc()).limit(1)
    )


def record_calibration(
    session: Session, claim: Claim, *, uri: str, nbytes: int, sha256: str | None = None, **values: Any
) -> str:
    """The calibration's id: of the new row, or of an equal one that another worker recorded meanwhile.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    known = find_calibration(session, values["content_hash"])
    if known is not None:
        return known.id
    artefact_id = put_artefact(session, "calibration", uri, nbytes, sha256=sha256)
    row = {"id": new_id("cal"), "job_id": claim.job_id, "artefact_id": artefact_id, "created_at": utc_now()} | values
    session.execute(insert(Calibration).values(**row))
    return str(row["id"])


def move_artefact(session: Session, claim: Claim, artefact_id: str, *, uri: str, nbytes: int) -> None:
    """An artefact whose file was lost was written again.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    artefact = session.get_one(Artefact, artefact_id)
    artefact.uri, artefact.nbytes = uri, nbytes


# --- sweeps and measurements ---------------------------------------------------------------------------------------


def record_sweep(session: Session, claim: Claim, *, job_id: str | None = None, **values: Any) -> str:
    """The id of a job's sweep: one row a job, made by the first attempt that comes here.

    Args:
        job_id: the whole whose part this is; None = the claim's own job.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    owner = job_id or claim.job_id
    insert_or_ignore(session, Sweep, {"id": new_id("swp"), "job_id": owner, "created_at": utc_now()} | values)
    return session.scalars(select(Sweep.id).where(Sweep.job_id == owner)).one()


def recorded_cells(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    config_hashes: Collection[str],
    numerics_version: int,
    device_kind: str | None,
) -> set[Cell]:
    """Cells measured before, by whichever sweep, on devices of this kind (None: of any): they are reused."""
    query = select(
        Measurement.layer_idx, Measurement.projection, Measurement.expert_idx, Measurement.config_hash
    ).where(
        Measurement.model_id == model_id,
        Measurement.calibration_id == calibration_id,
        Measurement.config_hash.in_(sorted(config_hashes)),
        Measurement.numerics_version == numerics_version,
    )
    if device_kind is not None:
        query = query.where(Measurement.device_kind == device_kind)
    return {(row[0], row[1], row[2], row[3]) for row in session.execute(query)}


def count_own_cells(session: Session, sweep_id: str) -> int:
    """Cells that this sweep was the first to measure, or measured again where it is forced; once each, on however many
    kinds of devices, also where a later sweep has taken their place."""
    names = ("layer_idx", "projection", "expert_idx", "config_hash")
    own = select(*(getattr(Measurement, name) for name in names)).where(Measurement.sweep_id == sweep_id)
    replaced = select(*(getattr(RetiredMeasurement, name) for name in names)).where(
        RetiredMeasurement.sweep_id == sweep_id, RetiredMeasurement.replaced_by_sweep_id.is_not(None)
    )
    return int(session.scalars(select(func.count()).select_from(own.union(replaced).subquery())).one())


def record_measurement(session: Session, claim: Claim, **values: Any) -> bool:
    """Keep one measurement; False where the cell was measured already.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    return insert_or_ignore(
        session, Measurement, {"attempt_id": claim.attempt_id, "created_at": utc_now(), "expert_idx": -1} | values
    )


# --- sensitivities -------------------------------------------------------------------------------------------------


def recorded_sensitivities(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    method: str,
    token_hash: str,
    numerics_version: int,
    device_kind: str,
) -> set[Cell]:
    """(matrix, anchor) pairs whose sensitivity is known for these very tokens."""
    rows = session.execute(
        select(
            SensitivityAnchor.layer_idx,
            SensitivityAnchor.projection,
            SensitivityAnchor.expert_idx,
            SensitivityAnchor.anchor_config_hash,
        ).where(
            SensitivityAnchor.model_id == model_id,
            SensitivityAnchor.calibration_id == calibration_id,
            SensitivityAnchor.method == method,
            SensitivityAnchor.token_hash == token_hash,
            SensitivityAnchor.numerics_version == numerics_version,
            SensitivityAnchor.device_kind == device_kind,
        )
    )
    return {(row[0], row[1], row[2], row[3]) for row in rows}


def record_sensitivity(session: Session, claim: Claim, **values: Any) -> bool:
    """Keep one sensitivity; False where it was known already.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    row = {"job_id": claim.job_id, "attempt_id": claim.attempt_id, "created_at": utc_now(), "expert_idx": -1}
    return insert_or_ignore(session, SensitivityAnchor, row | values)


def record_estimates(
    session: Session,
    claim: Claim,
    *,
    model_id: str,
    calibration_id: str,
    method: str,
    metric: str,
    token_hash: str,
    numerics_version: int,
    device_kind: str,
    estimates: Sequence[Mapping[str, Any]],
    incumbent_hash: str = "",
) -> None:
    """Keep what a job concluded from its anchors, in place of what was concluded from the same tokens before.

    Args:
        estimates: layer_idx, projection, expert_idx, value, log_se, low, high, raw, raw_log_se, own_weight, n_anchors,
            n_floored of every matrix; applies_to where it is not "all".
        incumbent_hash: of method reanchored: content_hash of the allocation that was measured at.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    shared = {
        "model_id": model_id,
        "calibration_id": calibration_id,
        "method": method,
        "metric": metric,
        "incumbent_hash": incumbent_hash,
        "token_hash": token_hash,
        "numerics_version": numerics_version,
        "device_kind": device_kind,
    }
    session.execute(delete(SensitivityEstimate).filter_by(**shared))
    stamp = {"job_id": claim.job_id, "created_at": utc_now(), "expert_idx": -1, "applies_to": "all"}
    if estimates:
        session.execute(insert(SensitivityEstimate), [shared | stamp | dict(values) for values in estimates])


def record_layer_fidelity(session: Session, claim: Claim, **values: Any) -> bool:
    """Keep how true one block's output stayed; False where it was known already.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    row = {"job_id": claim.job_id, "attempt_id": claim.attempt_id, "created_at": utc_now()}
    return insert_or_ignore(session, LayerFidelityRow, row | values)


def recorded_fidelities(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    config_hash: str,
    token_hash: str,
    numerics_version: int,
    device_kind: str,
) -> set[int]:
    """Layers whose fidelity at this config is known for these very tokens."""
    known = select(LayerFidelityRow.layer_idx).filter_by(
        model_id=model_id,
        calibration_id=calibration_id,
        config_hash=config_hash,
        token_hash=token_hash,
        numerics_version=numerics_version,
        device_kind=device_kind,
    )
    return set(session.scalars(known))


# --- compressions and evaluations ----------------------------------------------------------------------------------


def find_compression(
    session: Session,
    *,
    model_id: str,
    calibration_id: str,
    content_hash: str,
    numerics_version: int,
    device_kind: str,
) -> Compression | None:
    """The packed model that equal items made before."""
    return session.scalar(
        select(Compression).where(
            Compression.model_id == model_id,
            Compression.calibration_id == calibration_id,
            Compression.content_hash == content_hash,
            Compression.numerics_version == numerics_version,
            Compression.device_kind == device_kind,
        )
    )


def record_compression(session: Session, claim: Claim, *, uri: str, nbytes: int, **values: Any) -> str:
    """The compression's id: of the new row, or of an equal one that another worker recorded meanwhile.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    key = ("model_id", "calibration_id", "content_hash", "numerics_version", "device_kind")
    known = find_compression(session, **{name: values[name] for name in key})
    if known is not None:
        return known.id
    artefact_id = put_artefact(session, "compression", uri, nbytes)
    row = {"id": new_id("cmp"), "job_id": claim.job_id, "artefact_id": artefact_id, "created_at": utc_now()} | values
    session.execute(insert(Compression).values(**row))
    return str(row["id"])


def find_evaluation(session: Session, content_hash: str) -> Evaluation | None:
    """The evaluation that the same question gave before."""
    return session.scalar(select(Evaluation).where(Evaluation.content_hash == content_hash))


def record_evaluation(session: Session, claim: Claim, *, items: Sequence[tuple[float, int]], **values: Any) -> str:
    """The evaluation's id; ``items`` are (summed nll, number of tokens) of each window.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    known = find_evaluation(session, values["content_hash"])
    if known is not None:
        return known.id
    row = {"id": new_id("evl"), "job_id": claim.job_id, "created_at": utc_now()} | values
    session.execute(insert(Evaluation).values(**row))
    session.execute(
        insert(EvaluationItem),
        [
            {"evaluation_id": row["id"], "item_idx": number, "nll": nll, "n_tokens": n_tokens}
            for number, (nll, n_tokens) in enumerate(items)
        ],
    )
    return str(row["id"])


# --- validations ---------------------------------------------------------------------------------------------------


def record_validation(
    session: Session,
    claim: Claim,
    *,
    items: Sequence[Mapping[str, Any]],
    **values: Any,
) -> str:
    """The id of what this job's validation found: one row a job.

    Args:
        items: allocation_id (None: the original), name, kind, matrix_bytes, predicted_kl, kl, kl_se, nll, ppl of each,
            in order; and ``windows``: (mean kl, summed nll, number of tokens) of each window.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    row = {"id": new_id("val"), "job_id": claim.job_id, "created_at": utc_now()} | values
    if not insert_or_ignore(session, Validation, row):
        return session.scalars(select(Validation.id).where(Validation.job_id == claim.job_id)).one()
    for position, item in enumerate(items):
        columns = {name: value for name, value in item.items() if name != "windows"}
        statement = insert(ValidationItem).values(validation_id=row["id"], position=position, **columns)
        item_id = session.scalars(statement.returning(ValidationItem.id)).one()
        windows = [
            {"validation_item_id": item_id, "item_idx": number, "kl": kl, "nll": nll, "n_tokens": n_tokens}
            for number, (kl, nll, n_tokens) in enumerate(item["windows"])
        ]
        if windows:
            session.execute(insert(ValidationWindow), windows)
    return str(row["id"])


# --- throughputs ---------------------------------------------------------------------------------------------------


def record_throughput(session: Session, claim: Claim, **values: Any) -> str:
    """The id of what this job's probe measured: one row a job.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    row = {"id": new_id("thr"), "job_id": claim.job_id, "created_at": utc_now()} | values
    insert_or_ignore(session, Throughput, row)
    return session.scalars(select(Throughput.id).where(Throughput.job_id == claim.job_id)).one()
