"""/metrics in Prometheus' text form: what this process counted, and what the database holds at the moment.

Names begin with ``bitbudget_``; what is read from the database is the same whichever server is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from results_db import Database
from results_db.clock import db_now
from results_db.queue.relay import is_due
from results_db.tables import Attempt, Job, JobEvent, Measurement, RetiredMeasurement, Worker
from server.kit.sse import OpenStreams
from server.loop import AdvanceLoop

#: a method is any word that the caller likes, and each would make a series
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: seconds: pages and lists take milliseconds, allocations up to minutes
_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_STREAM = "/events"


class Metrics:
    """The metrics of one application."""

    def __init__(self, database: Database, loop: AdvanceLoop, streams: OpenStreams) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route"]
        self._requests = Counter(
            "bitbudget_http_requests", "Requests answered.", [*labels, "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "bitbudget_http_request_seconds",
            "Time to the end of an answer; event streams are left out.",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        open_now = Gauge("bitbudget_event_streams", "Event streams open now.", registry=self.registry)
        open_now.set_function(lambda: streams.open)
        self.registry.register(_FromDatabase(database, loop))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered, or given up. ``route`` is a template: ids would make a series each."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        if not route.endswith(_STREAM):
            self._seconds.labels(known, route).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self.registry)


class _FromDatabase(Collector):
    """Read when it is asked for; a database that is away makes one metric say so."""

    def __init__(self, database: Database, loop: AdvanceLoop) -> None:
        self.database = database
        self.loop = loop

    def describe(self) -> list[Metric]:
        return []  # otherwise the registry would ask the database before there is a schema

    def collect(self) -> Iterator[Metric]:
        yield _gauge("loop_leads", "1 where this server turns the advance loop.", float(self.loop.leads))
        try:
            with self.database.read() as session:
                found = list(_read(session))
        except SQLAlchemyError:
            yield _gauge("database_up", "1 where the database answers.", 0.0)
            return
        yield _gauge("database_up", "1 where the database answers.", 1.0)
        yield from found


def _read(session: Session) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("bitbudget_jobs", "Jobs by kind and state.", labels=["kind", "state"])
    for kind, state, n in session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)):
        jobs.add_metric([kind, state], n)
    yield jobs
    attempts = GaugeMetricFamily("bitbudget_attempts", "Attempts by state.", labels=["state"])
    for state, n in session.execute(select(Attempt.state, func.count()).group_by(Attempt.state)):
        attempts.add_metric([state], n)
    yield attempts
    due = func.coalesce(Attempt.available_at, Attempt.created_at)
    oldest, now = session.execute(select(func.min(due), db_now()).where(is_due())).one()
    age = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
    yield _gauge("queue_oldest_seconds", "How long the oldest attempt that is due has waited for a worker.", age)
    yield _counter("workers_lost", "Attempts whose lease ran out or whose process died.", _lost(session))
    yield _gauge("workers_up", "Workers that are up.", _count(session, Worker, Worker.state == "up"))
    yield _gauge("measurements", "Measurements that count.", _count(session, Measurement))
    yield _gauge("retired_measurements", "Measurements that count no more.", _count(session, RetiredMeasurement))


def _lost(session: Session) -> int:
    return _count(session, JobEvent, JobEvent.kind == "worker_lost")


def _count(session: Session, table: type[Any], *conditions: Any) -> int:
    return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"bitbudget_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"bitbudget_{name}", meaning, value=value)
