"""The advance loop: the one thread that moves jobs on.

Each turn promotes what waits, runs fit, allocate and gate jobs, takes back what lost workers held, tells RQ of queued
attempts, and ends studies. Every part is a guarded transition in its own transaction, so that a crash between any two
leaves nothing to repair: the next turn goes on. A job that computes for long holds up none of what workers wait for. Of
several servers on one database one turns, the others stand by.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from results_db import Database
from results_db.logs import bind
from results_db.queries.log_ids import log_ids
from results_db.queries.pending import has_expired, has_promotable, has_server_job
from results_db.queue.backoff import Backoff
from results_db.queue.jumps import has_impossible_ends, shorten_impossible_ends
from results_db.queue.leader import Leader
from results_db.queue.lease import reap_expired
from results_db.queue.promote import next_server_job, promote_waiting, requeue_server_jobs
from results_db.queue.tally import has_news, tally_sweeps
from results_db.queue.workers import has_silent_workers, mark_silent_workers
from results_db.states import JobKind, JobState
from results_db.tables import Job
from server.relay import Relay
from server.runner import run_server_job
from server.studies.finish import finish_study, studies_to_finish

log = logging.getLogger(__name__)

PERIOD_S = 0.3
_STOP_WAIT_S = 30.0


class AdvanceLoop:
    """Runs :meth:`turn` every ``period_s`` seconds in a thread of its own, while no other server does.

    Args:
        lease_s: the lease that workers take; None = do not look for leases that end later than any can.
    """

    def __init__(
        self,
        database: Database,
        relay: Relay,
        *,
        period_s: float = PERIOD_S,
        lease_s: float | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.database = database
        self.relay = relay
        self.period_s = period_s
        self.lease_s = lease_s
        self.backoff = backoff or Backoff()
        #: whether this server's loop is the one that turns
        self.leads = False
        self._leader = Leader(database)
        #: what the last turn failed with; None after a clean turn
        self.last_error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Turn until stopped."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="advance-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the present turn and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_WAIT_S)
            if self._thread.is_alive():
                log.warning("the advance loop is still in a turn after %s s: leaving it behind", _STOP_WAIT_S)
                return
        self._leader.release()
        self.leads = False

    def turn(self) -> bool:
        """One turn; whether it changed anything. A part that fails is logged and keeps no other from running."""
        errors: list[str] = []
        # told to RQ last: what this turn queued goes out with it
        parts = (
            self._requeue,
            self._mend_clock_jumps,
            self._reap,
            self._notice_silence,
            self._tally,
            self._promote,
            self._run_server_jobs,
            self._finish_studies,
            self._tell_rq,
        )
        changed = [self._guard(part, errors) for part in parts]
        self.last_error = "; ".join(errors) or None
        return any(changed)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not (self._may_turn() and self.turn()):
                self._stop.wait(self.period_s)

    def _may_turn(self) -> bool:
        """Whether no other server turns; a database that cannot be asked is an error of this turn."""
        try:
            leads = self._leader.hold()
        except (SQLAlchemyError, OSError) as error:
            self._log_once(f"nobody can say who turns the advance loop: {error}")
            self.last_error = f"leader: {type(error).__name__}"
            self.leads = False
            return False
        if leads != self.leads:
            log.info("this server turns the advance loop" if leads else "another server turns the advance loop now")
        if not leads:
            self.last_error = None
        self.leads = leads
        return leads

    def _guard(self, part: Callable[[], bool], errors: list[str]) -> bool:
        try:
            return part()
        except SQLAlchemyError as error:
            errors.append(f"{part.__name__}: {type(error).__name__}")
            self._log_once(f"the database refused {part.__name__}: {error}")
        except Exception as error:
            errors.append(f"{part.__name__}: {error}")
            log.exception("the advance loop failed in %s", part.__name__)
        return False

    def _log_once(self, message: str) -> None:
        """At error level when it is news, else only for those who listen closely: an outage fills no disk."""
        log.log(logging.DEBUG if self.last_error else logging.ERROR, message)

    def _reap(self) -> bool:
        with self.database.read() as session:
            if not has_expired(session):
                return False
        # one a transaction: who holds the job of one and waits for that of another never waits for us; the turn that
        # changed something is followed by the next at once
        with self.database.write() as session:
            lost = [log_ids(session, attempt_id) for attempt_id in reap_expired(session, backoff=self.backoff, most=1)]
        for ids in lost:
            with bind(**ids):
                log.warning("attempt %s lost its worker", ids["attempt_id"])
        return bool(lost)

    def _mend_clock_jumps(self) -> bool:
        """A wall clock that jumped backward would keep leases of dead workers, and waits, alive."""
        if self.lease_s is None:
            return False
        limits = {"lease_s": self.lease_s, "longest_wait_s": self.backoff.cap_s}
        with self.database.read() as session:
            if not has_impossible_ends(session, **limits):
                return False
        with self.database.write() as session:
            changed = shorten_impossible_ends(session, **limits)
        log.warning("the database's clock jumped back: %d leases or waits were shortened", changed)
        return False

    def _notice_silence(self) -> bool:
        """Workers that died with their machine say no goodbye."""
        with self.database.read() as session:
            if not has_silent_workers(session):
                return False
        with self.database.write() as session:
            names = mark_silent_workers(session)
        for name in names:
            log.warning("worker %s has not shown itself for a minute: it counts as down", name)
        return False

    def _tally(self) -> bool:
        """What split sweeps show of their parts. It moves no job: the loop need not turn again for it."""
        with self.database.read() as session:
            if not has_news(session):
                return False
        with self.database.write() as session:
            tally_sweeps(session)
        return False

    def _promote(self) -> bool:
        with self.database.read() as session:
            if not has_promotable(session):
                return False
        with self.database.write() as session:
            return promote_waiting(session) > 0

    def _requeue(self) -> bool:
        """Server jobs that a lost server or a lost database left running."""
        with self.database.read() as session:
            if not has_server_job(session, JobState.RUNNING):
                return False
        with self.database.write() as session:
            return requeue_server_jobs(session) > 0

    def _run_server_jobs(self) -> bool:
        """One job: then the rest of the turn, so that long queues of fits keep no worker waiting. It is computed in a
        thread of its own, and this one goes on with what cannot wait for it."""
        with self.database.read() as session:
            if not has_server_job(session, JobState.QUEUED):
                return False
        with self.database.write() as session:
            job = next_server_job(session)
        if job is None:
            return False
        failed: list[Exception] = []

        def compute() -> None:
            try:
                run_server_job(self.database, job)
            except Exception as error:  # noqa: BLE001 - raised where the job is waited for
                failed.append(error)

        thread = threading.Thread(target=compute, name="server-job", daemon=True)
        thread.start()
        leads = self.leads  # false where the loop is turned by hand: then there is no right to keep
        while thread.is_alive():
            thread.join(self.period_s)
            if thread.is_alive() and (not leads or self._may_turn()):
                self._keep_up(job)
        if failed:
            raise failed[0]
        return True

    def _keep_up(self, job: Job) -> None:
        """What a server job that takes its time keeps nobody waiting for. (That this thread asked for the right to turn
        has kept that right: the session which holds it ends when it says nothing.)"""
        parts = [self._mend_clock_jumps, self._reap, self._notice_silence, self._tally]
        # a gate that ends its study must meet no job that is just being split: its layers would not be skipped
        if job.kind != JobKind.GATE:
            parts.append(self._promote)
        errors: list[str] = []
        for part in (*parts, self._tell_rq):
            self._guard(part, errors)
        self.last_error = "; ".join(errors) or None

    def _finish_studies(self) -> bool:
        with self.database.read() as session:
            ids = studies_to_finish(session)
        for study_id in ids:
            with self.database.write() as session:
                finish_study(session, study_id)
        return bool(ids)

    def _tell_rq(self) -> bool:
        return self.relay.step() > 0
