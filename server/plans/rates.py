"""Which rates a plan is priced with: those of a probe, the seconds that the database holds, or a card's peaks."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compress_core.plan import Rates
from compress_core.plan.cards import CARDS, estimated, find_card
from compress_core.plan.prices import Known
from compress_core.version import NUMERICS_VERSION
from results_db.tables import Attempt, Measurement, Throughput, Worker
from server.kit.problem import invalid


def find_rates(session: Session, device: str | None) -> Rates | None:
    """The rates of a device; without a name, those of the newest probe. None: no probe on a CPU yet.

    Raises:
        Problem: unknown-device: no card and no probe has this name.
    """
    rows = _probes(session)
    if device is None:
        return _merged(rows, rows[0]) if rows else None
    if device == "cpu":
        cpus = [row for row in rows if row.device_kind == "cpu"]
        here = [row for row in cpus if row.hostname == socket.gethostname()] or cpus
        return _merged(cpus, here[0]) if here else None
    named = [row for row in rows if _plain(device) in _plain(row.device_name)]
    if named:
        return _merged(named, named[0])
    card = find_card(device)
    if card is None:
        known = ", ".join(["cpu", *(card.name for card in CARDS), *dict.fromkeys(row.device_name for row in rows)])
        raise invalid(
            "device",
            f"nothing is known of {device!r}: run a probe on it (POST /api/v1/probes), or name one of {known}",
            slug="unknown-device",
        )
    return estimated(card)


def measured_seconds(session: Session, rates: Rates | None) -> Known:
    """Mean seconds of every (shape, config) that this device's workers have measured.

    Stored seconds hold the load that there was; rates do not, so the load is taken off.
    """
    if rates is None or rates.source == "estimated":
        return {}
    where = [Measurement.numerics_version == NUMERICS_VERSION, Measurement.device_kind == rates.device_kind]
    query = (
        select(
            Measurement.out_features, Measurement.in_features, Measurement.config_hash, func.avg(Measurement.seconds)
        )
        .where(*where)
        .group_by(Measurement.out_features, Measurement.in_features, Measurement.config_hash)
    )
    if rates.device_kind != "cpu":
        workers = session.execute(select(Worker.id, Worker.versions).where(Worker.device_kind == rates.device_kind))
        ours = [id_ for id_, versions in workers if (versions or {}).get("device_name") == rates.device_name]
        query = query.join(Attempt, Attempt.id == Measurement.attempt_id).where(Attempt.worker_id.in_(ours))
    return {(row[0], row[1], row[2]): float(row[3]) * (rates.busy or 1.0) for row in session.execute(query)}


def _probes(session: Session) -> Sequence[Throughput]:
    """Probes of today's numerics, newest first."""
    query = select(Throughput).where(Throughput.numerics_version == NUMERICS_VERSION)
    return session.scalars(query.order_by(Throughput.id.desc())).all()


def _merged(rows: Sequence[Throughput], newest: Throughput) -> Rates:
    """The newest probe, with what older ones of the same device measured besides."""
    rates = Rates.from_dict(newest.rates)
    for row in rows:
        if row is not newest and (row.hostname, row.device_name, row.threads) == (
            newest.hostname,
            newest.device_name,
            newest.threads,
        ):
            rates = rates.merged(Rates.from_dict(row.rates))
    return rates


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
