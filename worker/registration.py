"""The worker's row, and the attempts that dead workers of this machine left behind."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from compress_core.version import NUMERICS_VERSION
from results_db import Database
from results_db.clock import db_now, utc_now
from results_db.ids import new_id
from results_db.packages import installed
from results_db.queue.lease import lose_attempt
from results_db.settings import Settings
from results_db.states import AttemptState
from results_db.tables import Attempt, Job, Worker
from worker.crash import last_words
from worker.device import Device

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "rq")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    boot_id: str
    pid_namespace: str
    pid: int
    #: clock ticks after boot
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process of that number now; None where there is none."""
        try:
            # the command's name, in parentheses, may hold spaces: count the fields after it
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = str(Path("/proc/self/ns/pid").readlink())
        except OSError:
            return None
        if fields[0] == "Z":  # dead, only not yet waited for
            return None
        return cls(boot_id, namespace, pid, int(fields[19]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "boot_id": self.boot_id,
            "pid_namespace": self.pid_namespace,
            "pid": self.pid,
            "started": self.started,
        }


def register(database: Database, name: str, device: Device) -> str:
    """Write this process's row; its id."""
    me = ProcessId.of(os.getpid())
    versions: dict[str, Any] = {package: installed(package) for package in _PACKAGES}
    versions |= {"numerics": NUMERICS_VERSION, "process": me.to_dict() if me else None, "device_name": device.name}
    worker = Worker(
        id=new_id("wrk"),
        name=name,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        device=device.requested,
        device_kind=device.kind,
        device_uuid=device.uuid,
        state="up",
        heartbeat_at=utc_now(),
        versions=versions,
    )
    with database.write() as session:
        session.add(worker)
    return worker.id


@dataclass(frozen=True, slots=True)
class Orders:
    """What people want of a worker."""

    #: finish what it does, take nothing more, end
    drain: bool
    #: the attempt that it runs and that somebody has cancelled
    cancelled: str | None


def touch(database: Database, worker_id: str, *, state: str = "up") -> Orders:
    """The worker is alive (or says goodbye), and hears what people want of it."""
    with database.write() as session:
        session.execute(
            update(Worker)
            .where(Worker.id == worker_id)
            .values(heartbeat_at=db_now(), state=state)
            .execution_options(synchronize_session=False)
        )
        drain = session.scalar(select(Worker.drain_requested).where(Worker.id == worker_id))
        cancelled = session.scalar(
            select(Attempt.id)
            .join(Job, Job.id == Attempt.job_id)
            .where(Attempt.worker_id == worker_id, Attempt.state == AttemptState.RUNNING.value, Job.cancel_requested)
            .limit(1)
        )
    return Orders(bool(drain), cancelled)


def bury_the_dead(database: Database, settings: Settings) -> int:
    """Lose the running attempts of workers of this machine whose process is gone; how many.

    Their leases would run out anyway: this only saves the wait. Workers in other pid namespaces or on other machines
    are left alone, since their processes cannot be seen from here.
    """
    me = ProcessId.of(os.getpid())
    if me is None:
        return 0
    with database.read() as session:
        workers = session.scalars(select(Worker).where(Worker.state == "up")).all()
    lost = 0
    for worker in workers:
        if runs_here(worker, me) is False:
            lost += _bury(database, settings, worker)
    if lost:
        log.warning("%d attempts of dead workers were put back", lost)
    return lost


def _bury(database: Database, settings: Settings, worker: Worker) -> int:
    """One attempt a transaction, as the reaper: in another order than its own, two that hold several would deadlock."""
    running = select(Attempt.id).where(Attempt.worker_id == worker.id, Attempt.state == AttemptState.RUNNING.value)
    with database.read() as session:
        attempt_ids = session.scalars(running).all()
    lost = 0
    for attempt_id in attempt_ids:
        words = last_words(settings.var_dir, attempt_id)
        with database.write() as session:
            attempt = session.get(Attempt, attempt_id)
            lost += attempt is not None and lose_attempt(
                session,
                attempt,
                f"its worker {worker.name} (pid {worker.pid}) is gone",
                traceback=words,
                backoff=settings.backoff,
            )
    with database.write() as session:  # last: who is interrupted before leaves the rest to the next worker that starts
        session.get_one(Worker, worker.id).state = "down"
    return lost


def runs_here(worker: Worker, me: ProcessId) -> bool | None:
    """Whether a worker's process is alive; None where this cannot be known, since it is not of ``me``'s machine."""
    process = (worker.versions or {}).get("process") or {}
    if (process.get("boot_id"), process.get("pid_namespace")) != (me.boot_id, me.pid_namespace):
        return None
    now = ProcessId.of(int(process["pid"]))
    return now is not None and now.started == process.get("started")
