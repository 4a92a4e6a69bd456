"""Measurements that count no more: invalidated by a person, or measured again by a forced sweep.

A row moves to ``retired_measurements`` in the transaction that says why, and what was computed from it is marked stale
in the same one. Whoever retires holds the calibration's row alone, whoever stores what was computed from measurements
holds it with others: neither can miss the other (PostgreSQL; SQLite's writers are alone anyway).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, String, and_, delete, func, insert, literal, select
from sqlalchemy.orm import Session

from results_db.clock import utc_now
from results_db.queue.lease import Claim, hold_lease
from results_db.recording import Cell, insert_or_ignore
from results_db.stale import Affected, Gone, batched, find_affected, mark_stale, teller
from results_db.tables import Calibration, Measurement, RetiredMeasurement

_M, _R = Measurement.__table__.c, RetiredMeasurement.__table__.c
#: what both tables have
_SHARED = [column.name for column in _M if column.name in _R and column.name != "id"]
_KEY = (
    *("model_id", "layer_idx", "projection", "expert_idx", "config_hash", "calibration_id", "numerics_version"),
    "device_kind",
)
#: what fits, allocations and gates are computed from; times are not compared
_NUMBERS = ("calibration_weighted_error", "normalized_mse", "raw_mse", "nbytes", "bits_per_weight")
_OF_GONE = [field.name for field in fields(Gone) if field.name != "since"]


@dataclass(frozen=True, slots=True)
class Retired:
    """What an invalidation found: done, or to be done."""

    measurements: int
    affected: Affected


def hold_measured(session: Session, calibration_ids: Iterable[str | None], *, alone: bool) -> None:
    """Lock calibrations: ``alone`` to retire their measurements, else to store what was computed from them."""
    wanted = sorted({id_ for id_ in calibration_ids if id_ is not None})
    query = select(Calibration.id).where(Calibration.id.in_(wanted)).order_by(Calibration.id)
    # NO KEY UPDATE: rows that only name the calibration may be inserted meanwhile
    lock = query.with_for_update(key_share=True) if alone else query.with_for_update(read=True)
    session.execute(lock).all()


def invalidate(session: Session, where: ColumnElement[bool], reason: str, *, dry_run: bool = False) -> Retired:
    """Retire every measurement that ``where`` names: its cell is missing from now on, and the next sweep measures it.

    Args:
        dry_run: nothing is written.
    """
    calibration_ids = session.scalars(select(_M.calibration_id).where(where).distinct()).all()
    if not dry_run:
        hold_measured(session, calibration_ids, alone=True)
    # a calibration whose first measurement came meanwhile is not locked, and left alone
    gone = _gone(session, where & _M.calibration_id.in_(calibration_ids))
    affected = find_affected(session, gone, teller("invalidated: ", reason))
    if not dry_run:
        _move(session, [one.id for one in gone], reason)
        mark_stale(session, affected)
    return Retired(len(gone), affected)


def record_again(session: Session, claim: Claim, **values: Any) -> bool:
    """Keep one measurement of a forced sweep in the place of what was known of its cell; False where this very sweep
    has measured it already.

    What was computed from the old row is marked stale, unless all numbers are bit for bit what they were.

    Raises:
        LeaseLost: nothing is written.
    """
    hold_lease(session, claim)
    row: dict[str, Any] = {"attempt_id": claim.attempt_id, "created_at": utc_now(), "expert_idx": -1} | values
    hold_measured(session, [row["calibration_id"]], alone=True)
    while True:
        old = session.execute(select(*_M).where(*(_M[name] == row[name] for name in _KEY))).first()
        if old is not None:
            if old.sweep_id == row["sweep_id"] or _was_replaced(session, row):
                return False
            _replace(session, old, row)
        if insert_or_ignore(session, Measurement, row):
            return True
        # a sweep that is not forced recorded the cell between our look and our insert: now it can be seen


def forced_cells(session: Session, sweep_id: str, *, device_kind: str | None = None) -> set[Cell]:
    """Cells that a forced sweep has measured and that still are: by its own rows, or by those of a later forced sweep
    that replaced them. One that a person invalidated is missing.

    Args:
        device_kind: only on devices of this kind.
    """
    names = ("layer_idx", "projection", "expert_idx", "config_hash")
    own = select(*(_M[name] for name in names)).where(_M.sweep_id == sweep_id)
    replaced = (
        select(*(_M[name] for name in names))
        .join(RetiredMeasurement, and_(*(_M[name] == _R[name] for name in _KEY)))
        .where(_R.sweep_id == sweep_id, _R.replaced_by_sweep_id.is_not(None))
    )
    if device_kind is not None:
        own, replaced = (query.where(_M.device_kind == device_kind) for query in (own, replaced))
    return {(row[0], row[1], row[2], row[3]) for query in (own, replaced) for row in session.execute(query)}


def count_replaced(session: Session, sweep_id: str) -> int:
    """Measurements that a forced sweep took the place of."""
    query = select(func.count()).select_from(RetiredMeasurement).where(_R.replaced_by_sweep_id == sweep_id)
    return int(session.scalars(query).one())


def count_retired(session: Session, model_id: str) -> int:
    """Measurements of a model that count no more; only ever grows."""
    query = select(func.count()).select_from(RetiredMeasurement).where(_R.model_id == model_id)
    return int(session.scalars(query).one())


def notice_retired(session: Session, calibration_id: str | None, measurement_ids: Collection[int]) -> None:
    """Mark what was just stored, if a measurement that it was computed from was retired while it was computed.

    Called with the new rows in the transaction, which must hold the calibration (``hold_measured``).
    """
    if calibration_id is None:
        return
    ids = set(measurement_ids)
    retired = session.execute(select(_R.id, _R.measurement_id).where(_R.calibration_id == calibration_id))
    hit = sorted(id_ for id_, measurement_id in retired if measurement_id in ids)
    by_reason: dict[tuple[str, str, bool], list[Gone]] = defaultdict(list)
    for row in [session.execute(select(*_R).where(_R.id == id_)).one() for id_ in hit]:
        now = session.execute(select(*_M).where(*(_M[name] == getattr(row, name) for name in _KEY))).first()
        if now is not None and _same_numbers(now, row):
            continue
        errors_too = now is None or any(getattr(now, name) != getattr(row, name) for name in _NUMBERS)
        told = ("invalidated: ", row.reason) if row.replaced_by_sweep_id is None else (row.reason, "")
        values = {name: getattr(row, name) for name in _OF_GONE}
        by_reason[(*told, errors_too)].append(Gone(**values | {"id": row.measurement_id}, since=row.measurement_id))
    for (verb, reason, errors_too), gone in by_reason.items():
        mark_stale(session, find_affected(session, gone, teller(verb, reason), errors_too=errors_too))


def _replace(session: Session, old: Any, new: dict[str, Any]) -> None:
    """Retire a row whose cell was measured again."""
    reason = f"measured again by sweep {new['sweep_id']}"
    gone = _gone(session, _M.id == old.id)
    _move(session, [old.id], reason, replaced_by=new["sweep_id"])
    errors_too = any(getattr(old, name) != new[name] for name in _NUMBERS)
    if errors_too or old.residual_spectrum != new.get("residual_spectrum"):
        mark_stale(session, find_affected(session, gone, teller(reason, ""), errors_too=errors_too))


def _same_numbers(a: Any, b: Any) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in (*_NUMBERS, "residual_spectrum"))


def _was_replaced(session: Session, row: dict[str, Any]) -> bool:
    """Whether this sweep's own measurement of a cell has made way for that of another forced sweep."""
    same = [_R[name] == row[name] for name in _KEY]
    query = select(_R.id).where(*same, _R.sweep_id == row["sweep_id"], _R.replaced_by_sweep_id.is_not(None))
    return session.execute(query.limit(1)).first() is not None


def _gone(session: Session, where: ColumnElement[bool]) -> list[Gone]:
    rows = session.execute(select(*(_M[name] for name in _OF_GONE)).where(where).order_by(_M.id)).all()
    # what a forced sweep found again to the last bit is what it was before
    same = and_(*(_M[name] == _R[name] for name in (*_KEY, *_NUMBERS)), _R.replaced_by_sweep_id.is_not(None))
    earlier = session.execute(
        select(_M.id, func.min(_R.measurement_id), func.min(_R.created_at))
        .join(RetiredMeasurement, same)
        .where(where)
        .group_by(_M.id)
    )
    first = {id_: (since, made) for id_, since, made in earlier}
    found = []
    for row in rows:
        since, made = first.get(row.id, (row.id, row.created_at))
        found.append(Gone(**row._asdict() | {"created_at": made}, since=since))
    return found


def _move(session: Session, ids: Sequence[int], reason: str, *, replaced_by: str | None = None) -> None:
    """From the measurements to the retired ones."""
    added = ("measurement_id", "reason", "retired_at", "replaced_by_sweep_id")
    told = (
        _M.id,
        literal(reason, String()),
        literal(utc_now(), _R.retired_at.type),
        literal(replaced_by, String()),
    )
    for some_ids in batched(ids):
        some = _M.id.in_(some_ids)
        rows = select(*(_M[name] for name in _SHARED), *told).where(some)
        session.execute(insert(RetiredMeasurement).from_select([*_SHARED, *added], rows))
        session.execute(delete(Measurement).where(some).execution_options(synchronize_session=False))
